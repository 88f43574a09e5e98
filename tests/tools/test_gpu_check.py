"""A GPU's ten minutes: what is measured, in which order, and that one step's end is not the end of the others."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

import gpu_check as tool
import gpu_steps
from atlas_edge.cli import run_app
from atlas_edge.errors import GateFailed, InputError, RuntimeMissing, UsageError
from atlas_edge.runtimes.tensorrt_library import ENTERPRISE, RTX
from atlas_edge.spec import EncoderSpec, Precision
from atlas_edge.system.gpu_probe import Gpu, GpuProbe, probe_gpu
from gpu_steps import Answer, Figures, Request, Times
from parts import gpu_plan, gpu_report
from parts.gpu_memory import GpuWatch
from parts.gpu_plan import Here, Step, look_around, steps
from parts.gpu_report import Outcome
from runtimes.fake_gpu import DIM, PX, Cudart, FakeTensorRT, embed

NO_GPU = GpuProbe(driver=None, gpus=(), problem="no NVIDIA driver is installed")


def card(capability: str = "8.9") -> GpuProbe:
    gpu = Gpu(name="NVIDIA RTX 4090", compute_capability=capability, memory_bytes=24 << 30)
    return GpuProbe(driver="13.0", gpus=(gpu,), problem="")


def here(**changed: Any) -> Here:
    found = {"device": "cuda", "probe": card(), "tensorrt": ENTERPRISE, "onnxruntime": True, "torch": True}
    return Here(**{**found, "missing": (), **changed})


TIMES = Times(
    p50_ms=1.5, p90_ms=1.6, p99_ms=1.7, tiles_per_s=1000.0, batch=32, variation=0.01, steady=True
)  # fmt: skip


def figures(**changed: Any) -> Figures:
    cosines = {"cosine_median": 0.99999, "cosine_p1": 0.9999, "cosine_worst": 0.9998, "finite": True}
    return Figures(**{**cosines, "runtime": "fake 1", "open_s": 1.0, "times": TIMES, **changed})


def test_a_machine_without_a_gpu_is_told_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if probe_gpu().gpus:
        pytest.skip("there is a GPU here")
    assert run_app(tool.app, ["--out", str(tmp_path / "out")]) == 4
    said = capsys.readouterr().err
    for name in ("GPU: ", "TensorRT: ", "ONNX Runtime: no provider for cuda: pip install onnxruntime-gpu", "PyTorch: "):
        assert name in said, said
    assert "--device cpu" in said and not (tmp_path / "out").exists()


def test_a_processor_is_measured_in_the_same_way(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (tiny_model, "--device", "cpu", "--out", tmp_path, "--only", "ONNX Runtime fp32", "--block-s", "0.02")
    assert run_app(tool.app, list(map(str, arguments))) == 0
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    names = [(outcome["step"], outcome["status"]) for outcome in report["outcomes"]]
    assert names == [(f"{name} fp32{rest}", "done") for name, rest in (("graph", ""), *ONNX_TWICE)]
    for outcome in report["outcomes"][1:]:
        found = outcome["figures"]
        assert found["cosine_worst"] > 0.999999 and found["times"]["tiles_per_s"] > 0
        assert len(found["times"]["samples_ms"]) >= 4 and found["host_peak_bytes"] > 1e7
    assert (tmp_path / "gpu_check.md").read_text() in capsys.readouterr().out
    # What was made before is taken again, and the graphs of another model never.
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UsageError, match="graphs of another model"):
        tool.gpu_check(str(other), out=tmp_path, device="cpu")


def test_what_cannot_be_measured_at_all_is_bad_input(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_app(tool.app, [str(tiny_model), "--prepare", "--out", str(out), "--calib", str(tmp_path / "no")]) == 5
    assert str(tmp_path / "no") in capsys.readouterr().err and not out.exists()
    assert run_app(tool.app, ["no-such-model", "--prepare", "--out", str(out)]) == 5
    assert "no full-precision graph to measure: no model is called 'no-such-model'" in capsys.readouterr().err
    # The folder is not taken by a name that was mistyped.
    tool._graphs_folder(out, str(tiny_model))


ONNX_TWICE = (("ONNX Runtime", ""), ("ONNX Runtime", ", again"))


@pytest.mark.parametrize(
    ("library", "probe", "found", "says"),
    [
        ({"tensorrt": "10.13.3"}, card("9.0"), ENTERPRISE, ""),
        ({"tensorrt": "10.13.3", "tensorrt_rtx": "1.7.1"}, card(), ENTERPRISE, ""),
        ({"tensorrt_rtx": "1.7.1"}, card(), RTX, ""),
        ({"tensorrt_rtx": "1.7.1"}, card("9.0"), None, "TensorRT-RTX has no engines for compute capability 9.0"),
        ({"tensorrt_rtx": "1.7.1"}, NO_GPU, None, "TensorRT-RTX is installed and has no GPU"),
        ({}, card(), None, "neither TensorRT nor TensorRT-RTX is installed"),
    ],
)
def test_the_library_is_one_that_has_engines_for_the_card(
    library: dict[str, str], probe: GpuProbe, found: object, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_plan, "installed_version", lambda one: library.get(one.module))
    around = look_around("cuda", probe)
    assert around.tensorrt is found
    assert any(says in line for line in around.missing) if says else all("TensorRT:" not in x for x in around.missing)


def test_what_can_run_is_planned_and_what_tells_most_comes_first() -> None:
    names = [step.name for step in steps(here())]
    assert names[3:6] == ["TensorRT fp16", "PyTorch fp32", "TensorRT int8"]
    assert {"TensorRT fp16, one tile, CUDA graph", "PyTorch fp16, compiled", "ONNX Runtime int8"} <= set(names)
    # Each graph is made before it is run.
    for step in steps(here()):
        if step.kind in ("onnxruntime", "tensorrt"):
            assert names.index(f"graph {step.precision.value}") < names.index(step.name)
    assert not [step for step in steps(here(tensorrt=RTX)) if step.way.startswith("one tile")]
    without = steps(here(tensorrt=None, onnxruntime=False))
    assert {step.kind for step in without} == {"graph", "torch"}


class Clock:
    """Time passes only where a step says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    """Tiles of the fake engine with what it computes of them."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    tiles = np.random.default_rng(0).integers(0, 256, (64, PX, PX, 3), dtype=np.uint8)
    save_file({"tiles": tiles, "reference": embed(tiles)}, folder / gpu_steps.STORED)
    numbers = {"name": "fake", "architecture": "fake", "embed_dim": DIM, "tile_px": PX, "pooling": "cls"}
    spec = EncoderSpec(**numbers, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    (folder / gpu_steps.MODEL).write_text(spec.model_dump_json())
    for precision in Precision:
        gpu_steps.graph_file(folder, precision).with_suffix(".made").touch()
    return folder


def request(graphs: Path, **changed: Any) -> Request:
    asked = {"kind": "tensorrt", "precision": "fp16", "device": "cuda", "model": "m", "graphs": graphs, "batch": 32}
    rest = {"rounds": 2, "block_s": 0.005, "answer": graphs / "answer.json", "library": "tensorrt"}
    return Request.model_validate({**asked, **rest, **changed})


def test_a_step_that_fails_or_no_longer_fits_leaves_the_others(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, limits = Clock(), []
    out = graphs.parent

    def run_child(asked: Request, *, timeout_s: float) -> Answer:
        limits.append(timeout_s)
        # What was found is on the disk before the next step begins.
        written = json.loads((out / "gpu_check.json").read_text())["outcomes"] if limits[1:] else []
        assert len(written) == (0, 1, 2, 4)[len(limits) - 1]
        clock.now += 30
        return Answer(error="the process ended with code -11") if len(limits) == 2 else Answer(figures=figures())

    monkeypatch.setattr(tool, "run_child", run_child)
    monkeypatch.setattr(tool, "time", clock)
    monkeypatch.setattr(tool, "GpuWatch", lambda _: SimpleWatch())
    chosen = [Step(kind="tensorrt", precision=precision) for precision in (Precision.FP16, Precision.INT8)]
    chosen += [
        Step(kind="torch", precision=Precision.FP32),
        Step(kind="torch", precision=Precision.FP16, way="compiled"),
    ]
    report = tool._run_all(chosen, lambda step, _: request(graphs, way="", kind=step.kind), here(), "m", out, 140.0)
    found = [(outcome.step, outcome.status) for outcome in report.outcomes]
    assert found == [
        ("TensorRT fp16", "done"),
        ("TensorRT int8", "failed"),
        ("PyTorch fp32", "done"),
        ("PyTorch fp16, compiled", "skipped"),
        ("TensorRT fp16, again", "done"),
    ]
    assert "takes at least 40 s, 12 s are left" in report.outcomes[3].why
    # A step never gets more than is left, less what the repetition takes.
    assert limits == [140.0, 72.5, 42.5, 50.0]
    text = (out / "gpu_check.md").read_text()
    assert "| TensorRT int8 | failed: the process ended with code -11 |" in text
    assert "measured again at the end: 1.00x" in text
    assert "| TensorRT engine on NVIDIA RTX 4090 (compute capability 8.9, 24 GiB) | yes | yes | cosine median" in text
    assert tool.faults(report) == ["TensorRT int8 failed"]


class SimpleWatch:
    added_bytes = 123_000_000

    def __enter__(self) -> "SimpleWatch":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with code -11"),
        ("print('CUDA error 700'); raise SystemExit(1)", "ended with code 1: CUDA error 700"),
        ("import json, sys; path = json.load(sys.stdin)['answer']; "
         "open(path, 'w').write('{\"error\": \"no kernel\", \"ended\": true}'); raise SystemExit(1)", "no kernel"),
        ("import subprocess, sys, time; "
         "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', __file__]); time.sleep(60)",
         "ended after 1 s"),
    ],
)  # fmt: skip
def test_a_process_that_dies_or_hangs_is_told(
    script: str, says: str, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.name == "nt":
        pytest.skip("signals of POSIX")
    (tmp_path / "gpu_steps.py").write_text(script)
    monkeypatch.setattr(tool, "_HERE", tmp_path)
    started = time.monotonic()
    limit = 1.0 if "after" in says else 60.0
    assert says in tool.run_child(request(graphs), timeout_s=limit).error
    assert time.monotonic() - started < 50 + limit
    # Nor does what it started stay, which belongs to nobody then.
    mine = str(tmp_path / "gpu_steps.py")
    left = [one for one in psutil.process_iter(["cmdline"]) if mine in (one.info["cmdline"] or ())]
    assert not left


def test_what_was_compared_stays_where_timing_did_not_end(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_library(monkeypatch, FakeTensorRT(Cudart()))
    monkeypatch.setattr(gpu_steps, "paired_speed", lambda *_, **__: 1 / 0)
    asked = request(graphs)
    with pytest.raises(ZeroDivisionError):
        gpu_steps.run(asked)
    (tmp_path / "gpu_steps.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(tool, "_HERE", tmp_path)
    answer = tool.run_child(asked, timeout_s=60.0)
    assert answer.figures is not None and answer.figures.times is None and "code -9" in answer.error
    outcome = Outcome(step="TensorRT fp16", status="failed", why=answer.error, figures=answer.figures)
    assert gpu_report._row(outcome).startswith("| TensorRT fp16 | 1.00000 | 1.00000 | failed: the process ended with")


def times_of(answer: Answer) -> Times:
    assert answer.figures is not None and answer.figures.times is not None
    return answer.figures.times


def fake_library(monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRT) -> list[Any]:
    from atlas_edge.export.engine import build
    from atlas_edge.runtimes import cuda, tensorrt_library

    built = []

    def build_engine(graph: Path, engine: Path, *, library: Any, precision: Precision, options: Any) -> Any:
        built.append((graph.name, library, options.batch_profile, options.compute_capabilities))
        trt.profile = options.batch_profile
        engine.write_bytes(b"engine")
        return SimpleNamespace(version=trt.__version__, build_seconds=2.0)

    monkeypatch.setattr(build, "build_engine", build_engine)
    monkeypatch.setattr(tensorrt_library, "import_library", lambda _: trt)
    monkeypatch.setattr(cuda.Cuda, "open", classmethod(lambda cls, device=0: cls(trt.cudart, device)))
    return built


def test_an_engine_is_built_for_the_card_compared_and_timed(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT(Cudart())
    built = fake_library(monkeypatch, trt)
    answer = gpu_steps.run(request(graphs, library="tensorrt_rtx", compute_capability="8.9"))
    assert answer.figures is not None and answer.figures.cosine_worst > 0.999999 and times_of(answer).batch == 32
    graph = gpu_steps.run(request(graphs, way="one tile, CUDA graph"))
    launched = trt.cudart.calls.count("cudaGraphLaunch")
    plain = gpu_steps.run(request(graphs, way="one tile"))
    assert times_of(graph).batch == times_of(plain).batch == 1
    assert launched > 64 and trt.cudart.calls.count("cudaGraphLaunch") == launched
    assert built == [
        ("fp16.onnx", RTX, (1, 32, 64), ("8.9",)),
        ("fp16.onnx", ENTERPRISE, (1, 1, 1), ()),
        ("fp16.onnx", ENTERPRISE, (1, 1, 1), ()),
    ]
    assert trt.cudart.leaks == {} and trt.contexts == 0


@pytest.mark.parametrize("fault", ["memory", "kernel", "library"])
def test_what_the_gpu_refuses_is_an_answer(fault: str, graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT(Cudart(memory_bytes=5000 if fault == "memory" else 1 << 30))
    trt.refuse_to_run = fault == "kernel"
    fake_library(monkeypatch, trt)
    if fault == "library":
        monkeypatch.setitem(gpu_steps.OPENED_BY, "tensorrt", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(read=lambda: request(graphs).model_dump_json()))
    gpu_steps.main()
    error = Answer.model_validate_json((graphs / "answer.json").read_bytes()).error
    expected = {"memory": "out of memory", "kernel": "no kernel image is available", "library": "ZeroDivisionError"}
    assert expected[fault] in error and "\n" not in error
    assert trt.cudart.leaks == {}


def test_embeddings_that_are_not_those_stored_are_a_fault(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [figures(cosine_median=0.9), figures(finite=False), figures(cosine_median=0.99)]
    names = ["TensorRT fp16", "TensorRT bf16", "TensorRT int8"]
    outcomes = [Outcome(step=name, status="done", figures=one) for name, one in zip(names, wrong, strict=True)]
    report = tool.GpuReport.model_construct(outcomes=tuple(outcomes))
    assert tool.faults(report) == ["TensorRT fp16 is not what was stored", "TensorRT bf16 is not what was stored"]
    # ... and the exit code of the whole.
    monkeypatch.setattr(tool, "probe_gpu", lambda: card())
    monkeypatch.setattr(tool, "look_around", lambda *_: here())
    monkeypatch.setattr(tool, "GpuWatch", lambda _: SimpleWatch())
    monkeypatch.setattr(tool, "run_child", lambda *_, **__: Answer(figures=wrong[0]))
    (graphs / "made_of.txt").write_text("m\n")
    page = graphs.parent / "page.md"
    page.write_text(f"# Page\n{tool.BEGIN}\nold\n{tool.END}\nThe end.\n")
    with pytest.raises(GateFailed, match="TensorRT fp16 is not what was stored"):
        tool.gpu_check("m", out=graphs.parent, only="TensorRT fp16", document=page)
    text = page.read_text()
    assert "**WRONG**" in text and "old" not in text and text.endswith(f"{tool.END}\nThe end.\n")
    with pytest.raises(UsageError, match="no such step"):
        tool.gpu_check("m", out=graphs.parent, only="abacus")
    (graphs / gpu_steps.STORED).write_bytes(b"torn")
    with pytest.raises(InputError, match="begin anew"):
        gpu_steps.stored(graphs)


def test_memory_is_that_of_the_card_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    used = {"NVIDIA RTX A2000": iter([1, 2] * 1000), "NVIDIA RTX 4090": iter([100, 100, 900, *[300] * 1000])}
    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: list(used)[index],
        nvmlDeviceGetName=lambda handle: handle,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=next(used[handle])),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with GpuWatch("NVIDIA RTX 4090") as watch:
        time.sleep(0.4)
    assert watch.added_bytes == 800

    def not_supported(handle: str) -> Any:
        raise NVMLError("Not Supported")

    library.nvmlDeviceGetMemoryInfo = not_supported
    for name in ("NVIDIA RTX 4090", "another"):
        with GpuWatch(name) as watch:
            pass
        assert watch.added_bytes is None


def test_pytorch_computes_in_the_precision_that_was_asked_for(
    graphs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from atlas_edge.models.load import load_model

    spec = load_model(str(tiny_model)).spec
    asked = request(graphs, kind="torch", model=str(tiny_model), device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (4, spec.tile_px, spec.tile_px, 3), dtype=np.uint8)
    full = gpu_steps._open_torch(asked.model_copy(update={"precision": Precision.FP32}), spec).encode(pixels)
    for precision, least in ((Precision.BF16, 0.999), (Precision.FP16, 0.9999)):
        half = gpu_steps._open_torch(asked.model_copy(update={"precision": precision}), spec).encode(pixels)
        cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
        assert least < cosine.min() and not np.array_equal(full, half)
    modes = []
    monkeypatch.setattr(torch, "compile", lambda module, mode: modes.append(mode) or module)
    for way in ("compiled", "compiled, CUDA graph"):
        assert way in gpu_steps._open_torch(asked.model_copy(update={"way": way}), spec).runtime
    assert modes == ["default", "reduce-overhead"]
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeMissing, match="PyTorch cannot use it"):
            gpu_steps._open_torch(asked.model_copy(update={"device": "cuda"}), spec)
