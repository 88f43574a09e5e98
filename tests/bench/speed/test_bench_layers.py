"""Layers grouped by what they are for, operations counted, the roofline."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from atlas_edge.bench.encoders import OpenedEncoders
from atlas_edge.bench.options import SpeedOptions
from atlas_edge.bench.speed.layers import GROUPS, group_layers, layer_times
from atlas_edge.bench.speed.operations import gop_per_tile
from atlas_edge.bench.speed.roofline import gemm_model, roofline
from atlas_edge.bench.speed.run import _roofline
from atlas_edge.encoder import Capabilities
from atlas_edge.errors import InputError
from atlas_edge.models.load import load_encoder
from atlas_edge.runtimes.onnxruntime import profiled_layers
from atlas_edge.runtimes.registry import Layer
from atlas_edge.spec import EncoderSpec
from support import RunCommand

SPEC = EncoderSpec(
    name="v", architecture="vit", embed_dim=64, tile_px=32, mean=(0, 0, 0), std=(1, 1, 1), pooling="cls", patch=8
)


def _layers(*found: tuple[str, int]) -> list[Layer]:
    return [Layer(name=kind, kind=kind, implementation="", width=width, rank=3, ms=1.0) for kind, width in found]


def test_a_fused_block_is_told_apart_by_order_and_width() -> None:
    layers = _layers(
        ("Convolution", 64), ("Reorder", 64), ("Concat", 64), ("MVN", 64), ("Subgraph", 64), ("FullyConnected", 192),
        ("Transpose", 64), ("Subgraph", 32), ("FullyConnected", 64), ("Eltwise", 64), ("MVN", 64), ("Reorder", 64),
        ("FullyConnected", 256), ("FullyConnected", 64), ("MVN", 64), ("Gather", 64),
    )  # fmt: skip
    assert group_layers(layers, SPEC) == [
        "patch embedding", "conversion", "patch embedding", "norm", "attention", "attention",
        "attention", "attention", "attention", "attention", "norm", "conversion",
        "MLP", "MLP", "norm", "other",
    ]  # fmt: skip


def test_every_kind_of_fused_product_tells_the_block() -> None:
    # OpenVINO gave the eighth block of a DINOv2 another kernel for its first MLP product than all others.
    layers = _layers(("MVN", 64), ("Subgraph", 64), ("FullyConnectedQuantizedLegacy", 256), ("FullyConnected", 64))
    assert group_layers(layers, SPEC) == ["norm", *["MLP"] * 3]


def test_separate_projections_are_attention_and_a_cnn_has_no_blocks() -> None:
    apart = _layers(("LayerNormalization", 64), ("MatMul", 64), ("MatMul", 64), ("MatMul", 64), ("Softmax", 17))
    assert group_layers(apart, SPEC) == ["norm", *["attention"] * 4]
    cnn = SPEC.model_copy(update={"patch": None})
    layers = _layers(("Convolution", 64), ("MVN", 64), ("Cast", 64), ("FullyConnected", 64))
    assert group_layers(layers, cnn) == ["other", "norm", "conversion", "other"]


def test_an_onnx_runtime_profile_is_read_with_medians_after_the_warm_up() -> None:
    def event(duration: int, index: int, name: str) -> dict[str, object]:
        arguments = {
            "op_name": "MatMul", "node_index": index, "provider": "CPU", "output_type_shape": [{"float": [4, 17, 192]}]
        }  # fmt: skip
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": duration, "args": arguments}

    events = [event(d, 1, "m") for d in (9000, 1000, 3000, 2000)] + [event(500, 2, "m")] * 4
    events.append({"cat": "Session", "name": "model_run", "dur": 1, "args": {}})
    first, second = profiled_layers(events, warm_up=1)
    assert (first.name, first.kind, first.width, first.rank, first.ms) == ("m", "MatMul", 192, 3, 2.0)
    assert second.ms == 0.5


def test_a_real_openvino_bundle_spends_its_time_in_known_groups(bundle: Path) -> None:
    found = layer_times(bundle, batch=4, calls=2)
    assert tuple(found.group_ms) == GROUPS and found.runtime == "OpenVINO"
    assert sum(found.group_ms.values()) == pytest.approx(found.total_ms)
    assert sum(found.group_share.values()) == pytest.approx(1.0)
    assert all(found.group_ms[group] > 0 for group in ("patch embedding", "attention", "MLP"))
    assert len(found.slowest) <= 10 and found.slowest[0].ms >= found.slowest[-1].ms


def test_operations_are_those_counted_by_hand(bundle: Path, tiny_model: Path) -> None:
    # 32 px, patch 8: 16 patches + CLS + 1 register = 18 tokens; width 64, depth 2, MLP 256, 2 heads.
    n, d = 18, 64
    block = 2 * n * d * (3 * d + d + 4 * d + 4 * d) + 2 * 2 * n * n * d
    patches = 2 * 16 * (8 * 8 * 3) * d
    # What is deployed computes only the CLS token's way through the last block: k and v of all tokens, the rest of one.
    last = 2 * n * d * 2 * d + 2 * d * (d + d + 4 * d + 4 * d) + 2 * 2 * n * d
    counted = [gop_per_tile(str(path), load_encoder(str(path))) for path in (bundle, tiny_model)]
    assert counted[1] == pytest.approx((patches + 2 * block) / 1e9, rel=1e-9)
    assert counted[0] == pytest.approx((patches + block + last) / 1e9, rel=1e-9)


def test_quantized_products_run_quantized_in_the_peak_measurement() -> None:
    openvino = pytest.importorskip("openvino")
    model = gemm_model("int8", rows=64, width=64, layers=2)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer({0: np.ones((64, 64), np.float32)})
    kinds = {info.node_type: info.exec_type for info in request.profiling_info if info.real_time.total_seconds() > 0}
    assert kinds["FullyConnected"].lower().endswith("i8")


def test_a_fraction_is_what_was_reached_over_the_peak(tiny_model: Path) -> None:
    pytest.importorskip("openvino")
    encoder = load_encoder(str(tiny_model))
    tiles = np.zeros((8, 32, 32, 3), np.uint8)
    found = roofline({"e": encoder}, {"e": 0.004}, {"e": "fp32"}, tiles, rounds=2, block_seconds=0.02)
    one = found.encoders["e"]
    assert set(found.peak_gop_per_s) == {"f32", "bf16", "int8"} and min(found.peak_gop_per_s.values()) > 1
    assert one.precision == "f32" and one.fraction.estimate > 0
    assert one.limit_tiles_per_s == pytest.approx(found.peak_gop_per_s["f32"] / 0.004)


def test_a_processor_s_peak_is_no_gpu_s_roofline(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = load_encoder(str(tiny_model))
    encoder.capabilities = Capabilities(gpu=0)  # type: ignore[misc]
    opened = OpenedEncoders(encoders={"on a card": encoder}, facts={}, reference=None)
    found = _roofline(opened, SpeedOptions(), np.zeros((8, 32, 32, 3), np.uint8), Console(stderr=True))
    assert found is None and "no roofline of on a card" in capsys.readouterr().err


def test_an_engine_has_no_profile_here(tmp_path: Path, bundle: Path) -> None:
    from atlas_edge.bundle import read_manifest
    from atlas_edge.spec import Target

    manifest = read_manifest(bundle).model_copy(update={"target": Target.TENSORRT})
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(InputError, match="tensorrt bundle"):
        layer_times(tmp_path)


def test_the_speed_command_measures_all_of_it(bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    done = run_command(
        "atlas-bench", "speed", bundle, "--rounds", "2", "--block-seconds", "0.02", "--threads", "1",
        "--cold-start", "--roofline", "--sweep", "--report", tmp_path / "r", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from atlas_edge.bench.report.schema import read_report

    found = read_report(tmp_path / "r")
    assert found.speed is not None and found.speed.encoders.keys() == {"tiny"}
    cold = found.cold_starts["tiny"]
    assert 0 < cold.open_ms <= cold.first_embedding_ms and cold.cached_first_embedding_ms is not None
    assert cold.offline_peak_memory_bytes is not None
    assert 50e6 < cold.peak_memory_bytes <= cold.offline_peak_memory_bytes < 4e9
    assert found.sweeps["tiny"].best.tiles_per_s > 0 and found.layers["tiny"].total_ms > 0
    assert found.roofline is not None and "tiny" in found.roofline.encoders
    assert found.paces["tiny"].tiles_per_slide > 1000
    text = (tmp_path / "r/report.md").read_text()
    for title in (
        "Latency of one tile",
        "Throughput",
        "Sweep of tiny",
        "Cold start and memory",
        "Roofline",
        "Where the time goes",
        "Pace",
    ):
        assert f"## {title}\n" in text
    assert ("## Energy\n" in text) == bool(found.energies)
