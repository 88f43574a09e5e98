"""Measure an encoder on an NVIDIA machine, all ways of running it, in less than eight minutes.

    python tools/gpu_check.py MODEL --out FOLDER

What it finds is in FOLDER after every step: gpu_check.json, and gpu_check.md with rows for README.md and
docs/tensorrt.md. Graphs can be made before, on a machine without a GPU, and the folder carried over:

    python tools/gpu_check.py MODEL --out FOLDER --prepare
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
import psutil

from atlas_edge.bench.machine import this_machine
from atlas_edge.bundle import sha256_file
from atlas_edge.cli import console, make_app, run_app
from atlas_edge.errors import GateFailed, InputError, RuntimeMissing, UsageError
from atlas_edge.models.load import DEFAULT_MODEL
from atlas_edge.models.timm_config import WEIGHTS
from atlas_edge.spec import Precision
from atlas_edge.system.atomic import write_atomic
from atlas_edge.system.gpu_probe import probe_gpu
from atlas_edge.tiles import open_tiles
from gpu_steps import STORED, Answer, Request, is_made
from parts.gpu_memory import GpuWatch, driver_version
from parts.gpu_plan import Here, Step, look_around, steps
from parts.gpu_report import GpuReport, Outcome, faults, report_markdown
from parts.marked import around

BEGIN, END = "<!-- gpu check: begin -->", "<!-- gpu check: end -->"
_MADE_OF = "made_of.txt"
# What is measured first is measured again at the end, to tell what the machine itself changed meanwhile: so much longer
# than the first time it may take.
_AGAIN = 1.25
_FULL = Step(kind="graph", precision=Precision.FP32)
_HERE = Path(__file__).resolve().parent

HELP = """Measure an encoder on this machine's NVIDIA GPU: TensorRT, ONNX Runtime and PyTorch, in every precision.

A step that fails or hangs is told and does not hold up the others; one that no longer fits into the time is left out.

Example:

    python tools/gpu_check.py ../shared/models/dinov2-vits14 --out gpu-check
"""

app = make_app("gpu_check", HELP)


@app.default
def gpu_check(
    model: str = DEFAULT_MODEL,
    /,
    *,
    out: Path = Path("gpu-check"),
    device: Literal["cuda", "cpu"] = "cuda",
    prepare: bool = False,
    calib: Path | None = None,
    budget_s: Annotated[float, cyclopts.Parameter(validator=cyclopts.validators.Number(gt=0))] = 450.0,
    batch: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=64))] = 32,
    block_s: Annotated[float, cyclopts.Parameter(validator=cyclopts.validators.Number(gt=0))] = 0.5,
    only: str = "",
    document: Path | None = None,
) -> None:
    """Measure, and write what was found after every step.

    Args:
        model: Folder or name of the encoder.
        out: Folder for the report and the graphs; graphs of the same model that lie there are used.
        device: `cpu` measures what runs on a processor, to see that everything works before a GPU is at hand.
        prepare: Make the graphs and stop: it takes no GPU, and most of the time.
        calib: Tile set that sets the scales of INT8 and FP8; synthetic tiles when left out.
        budget_s: Seconds for everything.
        batch: Tiles a call where throughput is measured.
        block_s: Seconds of one turn of a measurement; there are four.
        only: Steps whose name holds this text.
        document: Page between whose marks the table goes, such as docs/tensorrt.md.
    """
    deadline = time.monotonic() + budget_s
    if document is not None:
        around(document, BEGIN, END)  # before minutes of work
    if calib is not None:
        open_tiles(calib, role="calibration")
    probe = probe_gpu()
    here = look_around(device, probe)
    chosen = [step for step in steps(here) if step.kind != "graph" and only in step.name]
    if prepare:
        every = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.BF16, Precision.FP8)
        chosen = [Step(kind="graph", precision=precision) for precision in every]
    elif device == "cuda" and not probe.gpus:
        raise RuntimeMissing(
            "there is no GPU to check:\n" + "\n".join(f"  {line}" for line in here.missing),
            hint="make the graphs here with --prepare, try everything with --device cpu, and run it beside the GPU",
        )
    elif not chosen:
        names = [step.name for step in steps(here) if step.kind != "graph"]
        raise UsageError(f"--only {only}: no such step", hint=", ".join(names) or "; ".join(here.missing))
    else:
        graphs_of = {Precision.FP32, *(step.precision for step in chosen if step.kind != "torch")}
        every_step = [step for step in steps(here) if step.kind != "graph" or step.precision in graphs_of]
        chosen = [step for step in every_step if step.kind == "graph" or step in chosen]
    out.mkdir(parents=True, exist_ok=True)
    graphs = _graphs_folder(out, model)

    def request(step: Step, answer: Path) -> Request:
        return Request(
            kind=step.kind,
            precision=step.precision,
            way="" if step.way == "again" else step.way,
            device=device,
            model=model,
            graphs=graphs.resolve(),
            calibration=calib,
            library=None if here.tensorrt is None else here.tensorrt.module,
            compute_capability=probe.gpus[0].compute_capability if probe.gpus else "",
            batch=batch,
            rounds=4,
            block_s=block_s,
            answer=answer,
        )

    report = _run_all(chosen, request, here, model, out, deadline)
    print(report_markdown(report))
    if document is not None:
        before, after = around(document, BEGIN, END)
        document.write_text(f"{before}{BEGIN}\n{report_markdown(report, rows=False)}{END}{after}", encoding="utf-8")
    wrong = faults(report)
    if wrong:
        raise GateFailed(f"{len(wrong)} of {len(report.outcomes)} steps: {'; '.join(wrong)}", hint=f"see {out}")


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


def _run_all(
    chosen: Sequence[Step],
    request: Callable[[Step, Path], Request],
    here: Here,
    model: str,
    out: Path,
    deadline: float,
) -> GpuReport:
    """Run the steps one after the other; the report is on the disk after each.

    Raises:
        InputError: The full-precision graph cannot be made, without which there is nothing to compare with.
    """
    say = console()
    report = GpuReport(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        model=Path(model).name,
        device=here.device,
        machine=this_machine(),
        driver=driver_version(),
        cuda=here.probe.driver,
        gpu=here.probe.gpus[0] if here.probe.gpus else None,
        missing=here.missing,
    )
    first: Step | None = None
    kept_s = 0.0
    for step in chosen:
        room = deadline - time.monotonic() - kept_s
        outcome = _one(step, request, here, room)
        report = report.with_outcome(outcome)
        _write(out, report)
        if step == _FULL and outcome.status == "failed":
            raise InputError(f"there is no full-precision graph to measure: {outcome.why}", hint="see MODEL of --help")
        say.print(f"{step.name}: {outcome.status}{outcome.why and f', {outcome.why}'} ({outcome.seconds:.0f} s)")
        if first is None and outcome.figures is not None and outcome.figures.times is not None:
            first, kept_s = step, _AGAIN * outcome.seconds
    if first is not None and len(chosen) > 1:
        again = Step(kind=first.kind, precision=first.precision, way="again")
        report = report.with_outcome(_one(again, request, here, deadline - time.monotonic()))
        _write(out, report)
    return report


def _one(step: Step, request: Callable[[Step, Path], Request], here: Here, room_s: float) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        asked = request(step, Path(scratch) / "answer.json")
        made = is_made(asked.graphs, step.precision)
        if step.kind == "graph" and made:
            return Outcome(step=step.name, status="done", why="made before")
        if not (asked.graphs / STORED).is_file() and step != _FULL:
            return Outcome(step=step.name, status="skipped", why="there is no full-precision graph")
        if step.kind in ("onnxruntime", "tensorrt") and not made:
            return Outcome(step=step.name, status="skipped", why=f"there is no {step.precision.value} graph")
        if room_s < step.least_s:
            return Outcome(
                step=step.name,
                status="skipped",
                why=f"takes at least {step.least_s:.0f} s, {max(room_s, 0):.0f} s are left of --budget-s",
            )
        started = time.monotonic()
        # A GPU with a display has memory in use already: what counts is what is added.
        on_gpu = here.device == "cuda" and step.kind != "graph"
        with GpuWatch(here.probe.gpus[0].name) if on_gpu else nullcontext() as watch:
            answer = run_child(asked, timeout_s=min(step.most_s, room_s))
        seconds = time.monotonic() - started
        status: Literal["done", "failed"] = "failed" if answer.error else "done"
        added = None if watch is None else watch.added_bytes
        return Outcome(
            step=step.name,
            status=status,
            why=answer.error,
            seconds=seconds,
            figures=answer.figures,
            gpu_added_bytes=added,
        )


def run_child(request: Request, *, timeout_s: float) -> Answer:
    """Do a step in a process of its own, and end it, with whatever it started, when its time is up."""
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, str(_HERE / "gpu_steps.py")],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        error = ""
        try:
            child.communicate(request.model_dump_json().encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            error = f"ended after {timeout_s:.0f} s"
        finally:
            _end(child)
        if not error and child.returncode != 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            error = f"the process ended with code {child.returncode}: {lines[-1][:300] if lines else 'silent'}"
        answer = Answer.model_validate_json(request.answer.read_bytes()) if request.answer.is_file() else Answer()
        return answer if answer.ended else answer.model_copy(update={"error": error})


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is not None:
        return
    try:
        family = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for process in (*family, child):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    child.wait()


def _graphs_folder(out: Path, model: str) -> Path:
    """Where the graphs of a model are; those of another one are not taken for its own."""
    folder = out / "graphs"
    note = folder / _MADE_OF
    weights = Path(model) / WEIGHTS
    name = f"{Path(model).name} {sha256_file(weights) if weights.is_file() else ''}".strip()
    made = folder.is_dir() and any(path != note for path in folder.iterdir())
    if made and (not note.is_file() or note.read_text("utf-8").strip() != name):
        raise UsageError(f"{folder} holds graphs of another model", hint="give another --out")
    folder.mkdir(exist_ok=True)
    write_atomic(note, f"{name}\n".encode())
    return folder


def _write(out: Path, report: GpuReport) -> None:
    write_atomic(out / "gpu_check.json", report.model_dump_json(indent=2).encode())
    write_atomic(out / "gpu_check.md", report_markdown(report).encode())


if __name__ == "__main__":
    main()
