"""What `gpu_check` found, as JSON and as rows for README.md and docs/tensorrt.md."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from atlas_edge.bench.machine import Machine
from atlas_edge.bench.selftest.run import SOUND
from atlas_edge.spec import Precision
from atlas_edge.system.gpu_probe import Gpu
from gpu_steps import Figures, Times

_AGAIN = ", again"


class Outcome(BaseModel):
    """What became of one step.

    Attributes:
        why: Why it failed or was skipped.
        gpu_added_bytes: Most memory that the driver counted on the GPU beyond what was in use before.
    """

    model_config = ConfigDict(frozen=True)

    step: str
    status: Literal["done", "failed", "skipped"]
    why: str = ""
    seconds: float = 0.0
    figures: Figures | None = None
    gpu_added_bytes: int | None = None

    @property
    def precision(self) -> Precision:
        """Of what was measured."""
        words = self.step.partition(",")[0].split()
        return Precision(words[-1])


class GpuReport(BaseModel):
    """`gpu_check.json`."""

    model_config = ConfigDict(frozen=True)

    created_utc: str
    model: str
    device: Literal["cuda", "cpu"]
    machine: Machine
    driver: str | None
    cuda: str | None
    gpu: Gpu | None
    missing: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = ()

    def with_outcome(self, outcome: Outcome) -> "GpuReport":
        """The same with one more step."""
        return self.model_copy(update={"outcomes": (*self.outcomes, outcome)})

    @property
    def where(self) -> str:
        """The device in one phrase."""
        if self.device == "cpu" or self.gpu is None:
            return self.machine.cpu
        gpu = self.gpu
        return f"{gpu.name} (compute capability {gpu.compute_capability}, {gpu.memory_bytes / 2**30:.0f} GiB)"


def faults(report: GpuReport) -> list[str]:
    """Steps that failed, and those whose embeddings are not those that were stored."""
    found = []
    for outcome in report.outcomes:
        if outcome.status == "failed":
            found.append(f"{outcome.step} failed")
        if outcome.figures is not None and not _sound(outcome):
            found.append(f"{outcome.step} is not what was stored")
    return found


def report_markdown(report: GpuReport, *, rows: bool = True) -> str:
    """The table, and under it the rows for other pages.

    Args:
        report: What was found.
        rows: With the rows.
    """
    machine = report.machine
    driver = f"driver {report.driver or 'unknown'} for CUDA {report.cuda}, " if report.cuda else ""
    lines = [
        f"{report.model} on {report.where}, {driver}{machine.system}, {report.created_utc}. Cosines are to the "
        "embeddings of full precision on the processor, 64 synthetic tiles. Times are from uint8 tiles to float32 "
        "embeddings in host memory; steps were measured one after the other, not in turns.",
        "",
        "| | cosine median | worst | one tile p50, ms | p99 | tiles/s | a call | GPU memory, MB | ready in, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(outcome) for outcome in report.outcomes if not outcome.step.startswith("graph")]
    lines += ["", *_notes(report)]
    if rows:
        lines += ["", "For README.md:", "", _readme_row(report), "", "For docs/tensorrt.md:", "", *_docs_rows(report)]
    return "\n".join(lines) + "\n"


def _row(outcome: Outcome) -> str:
    figures, why = outcome.figures, f"{outcome.status}: {outcome.why.replace('|', '/')}"
    if figures is None:
        return f"| {outcome.step} | {why} | | | | | | | |"
    memory = "" if outcome.gpu_added_bytes is None else f"{outcome.gpu_added_bytes / 1e6:.0f}"
    wrong = "" if _sound(outcome) else " **WRONG**"
    cosines = f"{figures.cosine_median:.5f}{wrong} | {figures.cosine_worst:.5f}"
    times = figures.times
    if times is None:
        return f"| {outcome.step} | {cosines} | {why} | | | | {memory} | {figures.open_s:.1f} |"
    return (
        f"| {outcome.step} | {cosines} | {times.p50_ms:.2f} | {times.p99_ms:.2f} | "
        f"{times.tiles_per_s:.0f} ± {100 * times.variation:.0f} % | {times.batch} | {memory} | {figures.open_s:.1f} |"
    )


def _notes(report: GpuReport) -> list[str]:
    runtimes = sorted({_figure(outcome).runtime.partition(", ")[0] for outcome in _measured(report)})
    notes = [f"Runtimes: {'; '.join(runtimes) or 'none'}."]
    made = [f"{outcome.step} {outcome.status}" for outcome in report.outcomes if outcome.step.startswith("graph")]
    notes.append(f"Graphs: {', '.join(made)}.")
    drift = _drift(report)
    if drift is not None:
        notes.append(f"The first of them measured again at the end: {drift:.2f}x its throughput.")
    notes += [f"Not here: {line}." for line in report.missing]
    restless = [outcome.step for outcome in report.outcomes if (times := _times(outcome)) and not times.steady]
    notes += [f"Not steady when measured: {', '.join(restless)}."] if restless else []
    return [f"- {note}" for note in notes]


def _readme_row(report: GpuReport) -> str:
    engines = [outcome for outcome in _measured(report) if outcome.step.startswith("TensorRT")]
    chosen = engines or _measured(report)
    what = "TensorRT engine" if engines else "ONNX Runtime and PyTorch"
    cosines = ", ".join(
        f"{outcome.step.removeprefix('TensorRT ')} {_figure(outcome).cosine_median:.5f}" for outcome in chosen
    )
    compared = f"cosine median {cosines}" if chosen else "**no**"
    built = "yes" if chosen else "**no**"
    return f"| {what} on {report.where} | {built} | {built} | {compared} |"


def _docs_rows(report: GpuReport) -> list[str]:
    rows = []
    for outcome in _measured(report):
        figures, times = _figure(outcome), _times(outcome)
        speed = "**not timed**" if times is None else f"{times.tiles_per_s:.0f} tiles/s, {times.p50_ms:.2f} ms a tile"
        what = f"{'yes' if _sound(outcome) else '**WRONG**'}: cosine median {figures.cosine_median:.5f}, {speed}"
        rows.append(f"| {outcome.step} | {report.where}, {figures.runtime} | {what} |")
    return rows


def _measured(report: GpuReport) -> list[Outcome]:
    return [outcome for outcome in report.outcomes if outcome.figures is not None and not outcome.step.endswith(_AGAIN)]


def _figure(outcome: Outcome) -> Figures:
    assert outcome.figures is not None
    return outcome.figures


def _times(outcome: Outcome) -> Times | None:
    return None if outcome.figures is None else outcome.figures.times


def _drift(report: GpuReport) -> float | None:
    for again in report.outcomes:
        first = [outcome for outcome in report.outcomes if f"{outcome.step}{_AGAIN}" == again.step]
        times = _times(again), _times(first[0]) if first else None
        if times[0] is not None and times[1] is not None:
            return times[0].tiles_per_s / times[1].tiles_per_s
    return None


def _sound(outcome: Outcome) -> bool:
    figures = _figure(outcome)
    return figures.finite and 1.0 - figures.cosine_median <= SOUND[outcome.precision]
