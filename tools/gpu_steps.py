"""One step of `gpu_check`, as a process of its own: native libraries may end it, and its memory is its own."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.bench.selftest.run import selftest_tiles
from atlas_edge.bench.speed.timing import paired_speed
from atlas_edge.encoder import Encoder
from atlas_edge.errors import AtlasError, InputError
from atlas_edge.runtimes.tensorrt_library import LIBRARIES, LibraryName
from atlas_edge.spec import EncoderSpec, Precision
from atlas_edge.system.atomic import write_atomic
from atlas_edge.system.hardware import peak_memory_bytes
from atlas_edge.tiles import batches, open_tiles
from parts.gpu_plan import Kind, Way

if TYPE_CHECKING:
    from torch import nn

STORED, MODEL = "stored.safetensors", "model.json"
_CALIBRATION_TILES = 64
_PIECE = 8
_MAX_BATCH = 64


class Request(BaseModel):
    """What a child does.

    Attributes:
        model: Name or folder of the encoder.
        graphs: Folder of the graphs, and of the tiles with their full-precision embeddings.
        calibration: Tile set that sets the scales of INT8 and FP8; synthetic tiles when None.
        library: Whose engines are built.
        compute_capability: Of the GPU, such as `8.9`.
        batch: Tiles a call where throughput is measured.
        rounds: Turns of every measurement.
        block_s: How long a turn lasts.
        answer: File for the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    precision: Precision
    way: Way = ""
    device: Literal["cuda", "cpu"]
    model: str
    graphs: Path
    calibration: Path | None = None
    library: LibraryName | None = None
    compute_capability: str = ""
    batch: int
    rounds: int
    block_s: float
    answer: Path


class Times(BaseModel):
    """From uint8 tiles to float32 embeddings in host memory, copies to and from the GPU included.

    Attributes:
        p50_ms, p90_ms, p99_ms: Of one tile.
        tiles_per_s: With `batch` tiles a call; `variation` is that of the rounds, σ over mean.
        samples_ms, rounds_tiles_per_s: Every sample.
    """

    model_config = ConfigDict(frozen=True)

    p50_ms: float
    p90_ms: float
    p99_ms: float
    tiles_per_s: float
    batch: int
    variation: float
    steady: bool
    warnings: tuple[str, ...] = ()
    samples_ms: tuple[float, ...] = ()
    rounds_tiles_per_s: tuple[float, ...] = ()


class Figures(BaseModel):
    """What was measured.

    Attributes:
        runtime: Library and version.
        cosine_median, cosine_p1, cosine_worst: To the stored embeddings of full precision on the processor.
        finite: Whether every number is.
        open_s: Loading, building and the first embedding.
        times: None where the process ended before.
        host_peak_bytes: Most main memory that the process held.
        device_peak_bytes: Most memory of PyTorch's own allocator on the GPU; None for other runtimes.
    """

    model_config = ConfigDict(frozen=True)

    runtime: str
    cosine_median: float
    cosine_p1: float
    cosine_worst: float
    finite: bool
    open_s: float
    times: Times | None = None
    host_peak_bytes: int | None = None
    device_peak_bytes: int | None = None


class Answer(BaseModel):
    """What a child found: `figures` of a runtime, nothing of a graph, or why there is none.

    Attributes:
        ended: Nothing more was to be done: libraries may take long to unload, or end the process then.
    """

    figures: Figures | None = None
    error: str = ""
    ended: bool = False


def main() -> None:
    """Read a `Request` from stdin, do it, write the `Answer`."""
    request = Request.model_validate_json(sys.stdin.read())
    try:
        answer = run(request)
    except AtlasError as error:
        answer = Answer(error=str(error).replace("\n", " "))
    except Exception as error:  # of whatever library; the parent goes on with the next step
        answer = Answer(error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    write_atomic(request.answer, answer.model_copy(update={"ended": True}).model_dump_json().encode())


def run(request: Request) -> Answer:
    """Do what was asked for, in this process.

    Raises:
        AtlasError: What is missing, or cannot be.
    """
    if request.kind == "graph":
        _write_graph(request)
        return Answer()
    return Answer(figures=measure(request, OPENED_BY[request.kind]))


def measure(request: Request, opened: Callable[[Request, EncoderSpec], Encoder]) -> Figures:
    """Open an encoder, compare it with the stored embeddings, and time it.

    The comparison is in the answer's file before the clock starts: it stays where the rest takes too long.

    Args:
        request: What is measured.
        opened: Opens it.
    """
    tiles, reference = stored(request.graphs)
    spec = EncoderSpec.model_validate_json((request.graphs / MODEL).read_bytes())
    started = time.perf_counter()
    encoder = opened(request, spec)
    try:
        encoder.encode(tiles[:1])
        open_s = time.perf_counter() - started
        found = np.concatenate([encoder.encode(tiles[at : at + _PIECE]) for at in range(0, len(tiles), _PIECE)])
        figures = _compared(encoder.runtime, reference, found, open_s)
        write_atomic(request.answer, Answer(figures=figures).model_dump_json().encode())
        times = _timed(request, encoder, tiles)
        device_peak = _torch_peak() if request.kind == "torch" and request.device == "cuda" else None
    finally:
        encoder.close()
    peaks = {"host_peak_bytes": peak_memory_bytes(), "device_peak_bytes": device_peak}
    return figures.model_copy(update={"times": times, **peaks})


def _compared(runtime: str, reference: NDArray[np.float32], found: NDArray[np.float32], open_s: float) -> Figures:
    finite = bool(np.isfinite(found).all())
    agreement = embedding_agreement(reference, found if finite else np.nan_to_num(found, nan=1.0))
    return Figures(
        runtime=runtime,
        cosine_median=agreement.cosine_median,
        cosine_p1=agreement.cosine_p1,
        cosine_worst=agreement.cosine_worst,
        finite=finite,
        open_s=open_s,
    )


def _timed(request: Request, encoder: Encoder, tiles: NDArray[np.uint8]) -> Times:
    batch = 1 if request.way.startswith("one tile") else min(request.batch, len(tiles))
    asked = {"batch": batch, "rounds": request.rounds}
    report = paired_speed({"it": encoder}, tiles, reference="it", block_seconds=request.block_s, **asked)
    timed = report.encoders["it"]
    return Times(
        p50_ms=timed.latency.p50_ms,
        p90_ms=timed.latency.p90_ms,
        p99_ms=timed.latency.p99_ms,
        tiles_per_s=timed.throughput.tiles_per_s,
        batch=timed.throughput.batch,
        variation=timed.throughput.variation,
        steady=timed.steady,
        warnings=report.warnings,
        samples_ms=timed.latency.samples_ms,
        rounds_tiles_per_s=timed.throughput.rounds_tiles_per_s,
    )


def stored(graphs: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The tiles, and their full-precision embeddings as they were computed on the processor.

    Raises:
        InputError: They were not written, or cannot be read.
    """
    from safetensors.numpy import load_file

    try:
        arrays = load_file(graphs / STORED)
        return arrays["tiles"], arrays["reference"]
    except Exception as error:  # its own errors, and the system's
        raise InputError(
            f"{graphs / STORED} cannot be read: {error}", hint="remove the folder and begin anew"
        ) from error


def graph_file(graphs: Path, precision: Precision) -> Path:
    """Where the graph of a precision lies."""
    return graphs / f"{precision.value}.onnx"


def is_made(graphs: Path, precision: Precision) -> bool:
    """Whether the graph of a precision was written to its end."""
    return _mark(graphs, precision).is_file()


def _mark(graphs: Path, precision: Precision) -> Path:
    return graph_file(graphs, precision).with_suffix(".made")


def _write_graph(request: Request) -> None:
    from atlas_edge.export.engine.graphs import engine_graphs, engine_recipe
    from atlas_edge.models.graph import copy_onnx, export_onnx
    from atlas_edge.models.load import load_model
    from atlas_edge.quantize.backend import Job

    model = load_model(request.model)
    out = graph_file(request.graphs, request.precision)
    full = graph_file(request.graphs, Precision.FP32)
    if request.precision is Precision.FP32:
        export_onnx(model.module, model.spec, full)
        _store(request.graphs, full, model.spec)
        _mark(request.graphs, Precision.FP32).touch()
        return
    quantized = request.precision in (Precision.INT8, Precision.FP8)
    job = Job(
        model=model,
        graph=full,
        calibration=_calibration(request, model.spec),
        precision=request.precision,
        recipe=engine_recipe(request.precision) if quantized else None,
    )
    # Beside the answer: the parent removes that folder, however this process ends.
    copy_onnx(engine_graphs(job, request.answer.parent).model, out)
    _mark(request.graphs, request.precision).touch()


def _store(graphs: Path, full: Path, spec: EncoderSpec) -> None:
    from safetensors.numpy import save

    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    tiles = selftest_tiles(spec)
    encoder = OnnxEncoder(full, spec, device="cpu")
    reference = np.concatenate([encoder.encode(tiles[at : at + _PIECE]) for at in range(0, len(tiles), _PIECE)])
    write_atomic(graphs / STORED, save({"tiles": tiles, "reference": reference}))
    write_atomic(graphs / MODEL, spec.model_dump_json(indent=2).encode())


def _calibration(request: Request, spec: EncoderSpec) -> list[NDArray[np.uint8]]:
    # Others than those that judge.
    source = open_tiles(request.calibration or f"synthetic:{_CALIBRATION_TILES}", role="calibration")
    records = list(source.records())
    chosen = [records[int(at)] for at in np.linspace(0, len(records) - 1, min(_CALIBRATION_TILES, len(records)))]
    return [piece.pixels for piece in batches(source, chosen, size=_PIECE, tile_px=spec.tile_px, fit="resize")]


def _open_onnx(request: Request, spec: EncoderSpec) -> Encoder:
    from atlas_edge.runtimes.onnxruntime import OnnxEncoder

    path = graph_file(request.graphs, request.precision)
    return OnnxEncoder(path, spec, precision=request.precision.value, device=request.device)


def _open_engine(request: Request, spec: EncoderSpec) -> Encoder:
    from atlas_edge.export.engine.build import build_engine
    from atlas_edge.export.engine.child import EngineOptions
    from atlas_edge.runtimes.cuda import Cuda
    from atlas_edge.runtimes.tensorrt import TensorRTEncoder
    from atlas_edge.runtimes.tensorrt_engine import TensorRTEngine
    from atlas_edge.runtimes.tensorrt_library import import_library

    library = LIBRARIES[request.library or "tensorrt"]
    one = request.way.startswith("one tile")
    options = EngineOptions(
        batch_profile=(1, 1, 1) if one else (1, min(request.batch, _MAX_BATCH), _MAX_BATCH),
        compute_capabilities=(request.compute_capability,) if library.builds_without_gpu else (),
    )
    engine_path = request.graphs / f"{request.precision.value}{'-one' * one}.engine"
    graph = graph_file(request.graphs, request.precision)
    report = build_engine(graph, engine_path, library=library, precision=request.precision, options=options)
    trt = import_library(library)
    cuda = Cuda.open()
    with cuda.freed_on_fault():
        engine = TensorRTEngine(trt, library, engine_path.read_bytes())
        runtime = f"{library.title} {report.version}, built in {report.build_seconds:.0f} s"
        graphs = one and request.way.endswith("CUDA graph")
        return TensorRTEncoder(engine, cuda, spec, runtime=runtime, own_graphs=graphs)


def _open_torch(request: Request, spec: EncoderSpec) -> Encoder:
    import torch

    from atlas_edge.models.load import load_model
    from atlas_edge.runtimes.torch import TorchEncoder

    # As it comes: a user changes no switch of matrix products either.
    model = load_model(request.model)
    module = in_precision(model.module, request.precision)
    if request.way.startswith("compiled"):
        mode = "reduce-overhead" if request.way.endswith("CUDA graph") else "default"
        module = torch.compile(module, mode=mode)
    encoder = TorchEncoder(module, spec, device=request.device)
    how = request.way or "eager"
    encoder.runtime = f"PyTorch {torch.__version__.partition('+')[0]} {how}"
    return encoder


def in_precision(module: Any, precision: Precision) -> "nn.Module":
    """An `EncoderModule` whose backbone computes in FP32, FP16 or BF16; normalisation stays in FP32.

    Args:
        module: Its backbone's weights are cast in place.
        precision: One of the three.
    """
    import torch
    from torch import nn

    if precision is Precision.FP32:
        found: nn.Module = module
        return found
    kind = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}[precision]
    module.backbone.to(kind)

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = module

        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            embedding: torch.Tensor = self.whole.embed(self.whole.normalise(tiles).to(kind))
            return embedding.float()

    return Cast()


def _torch_peak() -> int:
    import torch

    return int(torch.cuda.max_memory_allocated())


OPENED_BY: dict[Kind, Callable[[Request, EncoderSpec], Encoder]] = {
    "onnxruntime": _open_onnx,
    "tensorrt": _open_engine,
    "torch": _open_torch,
}

if __name__ == "__main__":
    main()
