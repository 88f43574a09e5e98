"""Graphs beyond protobuf's 2 GiB, in small: the limit of one file is lowered, so that weights go beside the graph."""

import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from rich.console import Console
from safetensors.numpy import load_file

from atlas_edge import open_bundle
from atlas_edge.bench.selftest.run import SELFTEST_FILE
from atlas_edge.bundle import verify_bundle
from atlas_edge.encoder import Encoder
from atlas_edge.export.config import resolve
from atlas_edge.export.pipeline import STEPS, export_bundle
from atlas_edge.export.rebuild import rebuild_bundle
from atlas_edge.export.steps import Steps
from atlas_edge.models import graph
from atlas_edge.models.folding.vit import FoldedVit
from atlas_edge.models.load import load_encoder
from atlas_edge.quantize.backend import Job, Quantized
from atlas_edge.quantize.openvino.grids import VitGrids
from atlas_edge.spec import Precision

ONE_FILE_BYTES = 20_000


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_ONE_FILE_BYTES", ONE_FILE_BYTES)


def export(model: Path, tiles: Path, out: Path, target: str, precision: str, **options: object) -> Path:
    few = {"calib_limit": 8, "fit_limit": 8, "eval_limit": 8}
    config = resolve(
        model=str(model), target=target, precision=precision, calib=str(tiles), out=out, speed=False, **few, **options
    )
    export_bundle(config, Steps(Console(quiet=True), STEPS), command=("atlas-export",))
    return out


@pytest.mark.parametrize(
    ("target", "precision", "batch", "cosine"),
    [
        ("onnx", "fp32", (4,), 0.99999),
        ("onnx", "fp16", (), 0.999),
        ("onnx", "int8", (), 0.99),
        ("openvino", "fp32", (), 0.99999),
    ],
)
def test_weights_beside_the_graph_are_found_after_a_move(
    target: str,
    precision: str,
    batch: tuple[int, ...],
    cosine: float,
    tiny_model: Path,
    tiles: Path,
    tiny_tiles: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    out = export(tiny_model, tiles, tmp_path / "bundle", target, precision, batch=batch)
    moved = out.rename(tmp_path / "moved")
    names = {file.path for file in verify_bundle(moved).files}
    assert ("model.onnx.data" in names) == (target == "onnx")
    encoder, reference = open_bundle(moved), load_encoder(str(tiny_model))
    found, expected = encoder.encode(tiny_tiles), reference.encode(tiny_tiles)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > cosine


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_engines_are_built_and_rebuilt_from_weights_beside_the_graph(
    precision: str, tiny_model: Path, tiles: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = export(tiny_model, tiles, tmp_path / "bundle", "tensorrt-rtx", precision, compute_capabilities=("8.9",))
    moved = out.rename(tmp_path / "moved")
    rebuild_bundle(moved, compute_capabilities=("12.0",))
    names = {file.path for file in verify_bundle(moved).files}
    assert "onnx/model.onnx.data" in names
    assert ("fp16/onnx/model.onnx.data" in names) == (precision == "int8")
    assert open_bundle(moved / "onnx").encode(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 64)


@pytest.mark.parametrize("dynamo", [True, False])
def test_the_graph_names_no_file_of_this_machine(dynamo: bool, tiny_model: Path, tmp_path: Path) -> None:
    from atlas_edge.models.load import load_model

    model = load_model(str(tiny_model))
    path = graph.export_onnx(model.module, model.spec, tmp_path / "model.onnx", dynamo=dynamo)
    assert b"site-packages" not in path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_smaller_graph_leaves_no_weights_beside_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_edge.models.load import load_model

    model = load_model(str(tiny_model))
    path = graph.export_onnx(model.module, model.spec, tmp_path / "model.onnx")
    beside = graph.onnx_bytes(path)
    whole = graph.load_onnx(path)
    monkeypatch.setattr(graph, "_ONE_FILE_BYTES", 1 << 30)
    graph.copy_onnx(path, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert graph.onnx_bytes(path) == pytest.approx(beside, rel=0.05)
    assert list(onnx.load(path).graph.initializer) == list(whole.graph.initializer)


def test_blocks_are_folded_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.models.folding import vit
    from atlas_edge.models.load import load_model

    alive: weakref.WeakSet[vit.FoldedBlock] = weakref.WeakSet()
    counts = []

    class Counted(vit.FoldedBlock):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[arg-type]
            alive.add(self)
            counts.append(len(alive))

    monkeypatch.setattr(vit, "FoldedBlock", Counted)
    model = load_model("atlas2-demo")
    graph.export_onnx(model.module, model.spec, tmp_path / "model.onnx")
    assert len(counts) == 12 and max(counts) <= 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is full")
@pytest.mark.parametrize("full", ["model.onnx.data.new", "model.onnx"])
def test_a_full_disk_is_told_with_the_path(full: str, tiny_model: Path, tmp_path: Path) -> None:
    from atlas_edge.models.load import load_model

    (tmp_path / full).symlink_to("/dev/full")
    model = load_model(str(tiny_model))
    with pytest.raises(OSError, match="No space left") as raised:
        graph.export_onnx(model.module, model.spec, tmp_path / "model.onnx")
    assert raised.value.filename == str(tmp_path / full.removesuffix(".new"))


def test_without_timing_one_network_is_in_memory_at_a_time(
    tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_edge.export.backends import onnx as backend

    opened, opens = [], backend._open

    def opens_alone(path: Path, job: Job, precision: Precision) -> Encoder:
        assert all(encoder._session is None for encoder in opened)  # closed
        assert all(weight.is_meta for weight in job.model.module.parameters())
        opened.append(opens(path, job, precision))
        return opened[-1]

    monkeypatch.setattr(backend, "_open", opens_alone)
    export(tiny_model, tiles, tmp_path / "bundle", "onnx", "fp32")
    assert len(opened) == 2
    assert set(load_file(tmp_path / "bundle" / SELFTEST_FILE)) == {"reference", "deployed", "tile_blocks"}


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_network_goes_as_soon_as_it_is_folded_for_its_last_time(
    precision: str, tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_edge.export.backends.openvino import OpenVinoBackend
    from atlas_edge.quantize.openvino import graph as writer

    modules, builds, quantizes = [], writer.build_openvino, OpenVinoBackend.quantize

    def quantize(self: OpenVinoBackend, job: Job, scratch: Path) -> Quantized:
        modules.append(job.model.module)
        return quantizes(self, job, scratch)

    def build(folded: FoldedVit, grids: VitGrids, *, tile_px: int) -> object:
        assert all(weight.is_meta for weight in modules[0].parameters())
        assert not any(weight.is_meta for weight in folded.parameters())
        return builds(folded, grids, tile_px=tile_px)

    monkeypatch.setattr(OpenVinoBackend, "quantize", quantize)
    monkeypatch.setattr(writer, "build_openvino", build)
    export(tiny_model, tiles, tmp_path / "bundle", "openvino", precision)
    assert len(modules) == 1
