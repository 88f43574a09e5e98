"""How near an encoder comes to the most that this machine's matrix units can do: is there anything left to win?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.bench.speed.timing import at_size, offline_batch, timed_block, timed_call
from atlas_edge.cli import require_module
from atlas_edge.encoder import Encoder
from atlas_edge.runtimes.int8_sums import int8_properties

GemmPrecision = Literal["f32", "bf16", "int8"]

PRECISIONS: tuple[GemmPrecision, ...] = ("f32", "bf16", "int8")
# As many rows as eight tiles of 257 tokens; wide enough that packing and memory do not count, small enough for L2/L3.
_ROWS, _WIDTH, _LAYERS = 2056, 1536, 4
_OPS = 2.0 * _ROWS * _WIDTH * _WIDTH * _LAYERS
_PEAK_OF: Mapping[str, GemmPrecision] = {"int8": "int8", "bf16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRoofline:
    """One encoder against the peak of its precision.

    Attributes:
        gop_per_tile: Multiplications and additions of its matrix products and convolutions, 10^9 a tile.
        precision: Whose peak it is compared with; layers in a higher precision make the fraction smaller.
        gop_per_s: What it reached, median of the rounds.
        fraction: Of the peak, 0-1, by rounds in which both took turns.
        limit_tiles_per_s: Throughput at the peak.
    """

    gop_per_tile: float
    precision: GemmPrecision
    gop_per_s: float
    fraction: Interval
    limit_tiles_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """This processor's peaks and the encoders below them.

    Attributes:
        peak_gop_per_s: Precision -> best of the rounds of large matrix products through OpenVINO.
        method: How the peak was measured.
        encoders: Name -> figures; encoders whose operations could not be counted are left out.
    """

    peak_gop_per_s: dict[str, float]
    method: str
    encoders: dict[str, EncoderRoofline]


def roofline(
    encoders: Mapping[str, Encoder],
    gop_per_tile: Mapping[str, float],
    precisions: Mapping[str, str],
    tiles: NDArray[np.uint8],
    *,
    threads: int | None = None,
    rounds: int = 5,
    block_seconds: float = 0.3,
    batch: int = 8,
) -> Roofline:
    """Measure the peaks and the encoders in turns.

    Args:
        encoders: Name -> encoder, all on the CPU: its peaks are what is measured.
        gop_per_tile: Name -> 10^9 operations a tile (`operations.gop_per_tile`).
        precisions: Name -> precision of its compute-heavy layers, such as `int8`; anything else counts as f32.
        tiles: `(N, tile_px, tile_px, 3)` uint8.
        threads: Threads of the matrix products; the runtime's own choice when None.
        rounds: Turns of each.
        block_seconds: How long a turn lasts, at least.
        batch: Tiles a call.

    Raises:
        RuntimeMissing: OpenVINO is not installed.
    """
    peaks: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    rates: dict[str, list[float]] = {name: [] for name in gop_per_tile}
    products = {precision: _product(precision, threads) for precision in PRECISIONS}
    sizes = {name: offline_batch(encoders[name], batch) for name in gop_per_tile}
    calls = {
        name: timed_call(encoders[name], at_size(tiles, encoders[name].spec.tile_px), sizes[name])
        for name in gop_per_tile
    }
    for _ in range(rounds):
        for precision, product in products.items():
            peaks[precision].append(_OPS / 1e9 / float(np.median(timed_block(product, block_seconds))))
        for name, call in calls.items():
            times = timed_block(call, block_seconds)
            rates[name].append(gop_per_tile[name] * sizes[name] / float(np.median(times)))
    found = {}
    for name, rate in rates.items():
        precision = _PEAK_OF.get(precisions[name], "f32")
        found[name] = EncoderRoofline(
            gop_per_tile=gop_per_tile[name],
            precision=precision,
            gop_per_s=float(np.median(rate)),
            fraction=geometric_mean_interval(np.array(rate) / np.array(peaks[precision])),
            limit_tiles_per_s=max(peaks[precision]) / gop_per_tile[name],
        )
    return Roofline(
        peak_gop_per_s={precision: max(values) for precision, values in peaks.items()},
        method=f"{_LAYERS} chained products ({_ROWS} x {_WIDTH}) x ({_WIDTH} x {_WIDTH}) in OpenVINO, best of "
        f"{rounds} rounds' medians; a fraction compares medians of the same round",
        encoders=found,
    )


def _product(precision: GemmPrecision, threads: int | None) -> Callable[[], float]:
    import time

    require_module("openvino", extra="openvino")
    import openvino

    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        **int8_properties(),
    }
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    model = gemm_model(precision, rows=_ROWS, width=_WIDTH, layers=_LAYERS)
    request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()
    data = np.random.default_rng(0).normal(size=(_ROWS, _WIDTH)).astype(np.float32)

    def call() -> float:
        started = time.perf_counter()
        request.infer({0: data}, share_inputs=True)
        return time.perf_counter() - started

    return call


def gemm_model(precision: GemmPrecision, *, rows: int, width: int, layers: int) -> Any:
    """An OpenVINO model of chained products `(rows, width) x (width, width)`; int8 is quantized as NNCF does it."""
    import openvino
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    start = node = ops.parameter([rows, width], np.float32)
    for _ in range(layers):
        if precision == "int8":
            low, high = np.float32(-4.0), np.float32(4.0 * 127 / 128)
            node = ops.fake_quantize(node, low, high, low, high, 256)
            whole = ops.constant(random.integers(-127, 128, (width, width)).astype(np.int8))
            scale = ops.constant(np.full((width, 1), 1 / (73 * np.sqrt(width)), np.float32))
            weight = ops.multiply(ops.convert(whole, np.float32), scale)
        else:
            weight = ops.constant((random.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32))
        node = ops.matmul(node, weight, transpose_a=False, transpose_b=True)
    return openvino.Model([node], [start], "gemm")
