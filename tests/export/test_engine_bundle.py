from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_graph import DIM, TILE_PX, write_small_graph

from atlas_edge.bench.selftest.run import run_selftest, write_selftest
from atlas_edge.bundle import open_bundle, verify_bundle, write_manifest
from atlas_edge.errors import ChecksumError, InputError, RuntimeMissing, UsageError
from atlas_edge.export import rebuild as under_test
from atlas_edge.export.engine.build import find_tensorrt
from atlas_edge.export.engine.bundle import build_parts, write_part_manifests
from atlas_edge.export.engine.child import EngineOptions
from atlas_edge.export.rebuild import rebuild_bundle
from atlas_edge.manifest import Execution, Manifest, ModelProvenance
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.runtimes.tensorrt_library import RTX
from atlas_edge.spec import EncoderSpec, Precision, Target
from atlas_edge.system.gpu_probe import Gpu, GpuProbe, probe_gpu

pytest.importorskip("tensorrt_rtx")
SPEC = EncoderSpec(
    name="small", architecture="small", embed_dim=DIM, tile_px=TILE_PX, mean=(0, 0, 0), std=(1, 1, 1), pooling="avg"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An engine's bundle as the export writes it, FP16 beside it (the same graph, for speed)."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    graph = write_small_graph(tmp_path / "small.onnx")
    choice = find_tensorrt(RTX)
    parts = build_parts(
        folder,
        graph,
        choice=choice,
        precision=Precision.FP32,
        fp16_graph=graph,
        options=EngineOptions(compute_capabilities=("8.6", "8.9"), batch_profile=(1, 4, 8), batch_independent=True),
    )
    manifest = Manifest(
        encoder=SPEC,
        target=Target.TENSORRT,
        precision=Precision.FP32,
        execution=parts.execution,
        versions={"tensorrt-rtx": choice.version},
        command=("atlas-export",),
        config={},
        model=ModelProvenance(name="small", source="registry"),
        files=(),
    )
    (folder / "report.md").write_text("measured")
    write_selftest(folder, OnnxEncoder(graph, SPEC))
    write_part_manifests(folder, manifest, parts)
    write_manifest(folder, manifest)
    return folder


def test_the_bundle_holds_bundles_that_run_without_a_gpu(bundle: Path) -> None:
    manifest = verify_bundle(bundle)
    assert (manifest.execution.model_file, manifest.execution.fallback_file) == ("model.engine", "onnx/model.onnx")
    assert manifest.execution.engine_library == "tensorrt_rtx"
    tiles = np.random.default_rng(0).integers(0, 256, (3, TILE_PX, TILE_PX, 3), dtype=np.uint8)
    assert run_selftest(bundle / "onnx", speed=False).passed
    for inner in ("onnx", "fp16/onnx"):
        encoder = open_bundle(bundle / inner)
        assert encoder.encode(tiles).shape == (3, DIM)
        encoder.close()
    assert verify_bundle(bundle / "fp16").precision is Precision.FP16


def test_without_a_gpu_the_selftest_names_the_inner_bundle(bundle: Path) -> None:
    if probe_gpu().gpus:
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeMissing) as missing:
        run_selftest(bundle)
    assert missing.value.hint is not None
    assert missing.value.hint.endswith(str(bundle / "onnx"))


def test_a_rebuild_replaces_the_engines_and_keeps_the_rest(bundle: Path) -> None:
    old = {path.relative_to(bundle): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    rebuilt = rebuild_bundle(bundle, compute_capabilities=("12.0",), batch_profile=(2, 2, 2))
    assert rebuilt == verify_bundle(bundle)
    assert rebuilt.execution.compute_capabilities == ("12.0",)
    assert rebuilt.execution.batch == 2
    assert rebuilt.execution.engine_options == ("batch_independent",)
    assert verify_bundle(bundle / "fp16").execution.compute_capabilities == ("12.0",)
    new = {path.relative_to(bundle): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert new.keys() == old.keys()
    changed = {str(path) for path in new if new[path] != old[path]}
    assert {"manifest.json", "model.engine", "fp16/model.engine"} <= changed
    assert not changed & {"report.md", "selftest.safetensors", "onnx/model.onnx", "fp16/onnx/model.onnx"}


def test_a_rebuild_takes_the_gpus_of_the_machine(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = GpuProbe(
        driver="13.0", gpus=(Gpu(name="RTX 5080", compute_capability="12.0", memory_bytes=16 << 30),), problem=""
    )
    monkeypatch.setattr(under_test, "probe_gpu", lambda: here)
    rebuilt = rebuild_bundle(bundle, out=tmp_path / "other")
    assert rebuilt.execution.compute_capabilities == ("12.0",)
    assert verify_bundle(bundle).execution.compute_capabilities == ("8.6", "8.9")


def test_a_failed_rebuild_leaves_the_old_bundle(bundle: Path) -> None:
    before = verify_bundle(bundle)
    with pytest.raises(UsageError, match=r"takes no compute capability '9\.0'"):
        rebuild_bundle(bundle, compute_capabilities=("9.0",))
    assert verify_bundle(bundle) == before
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_only_a_whole_bundle_with_an_engine_is_rebuilt(bundle: Path) -> None:
    with pytest.raises(UsageError, match="built for onnx, which has no engine"):
        rebuild_bundle(bundle / "onnx")
    (bundle / "report.md").write_text("changed")
    with pytest.raises(ChecksumError):
        rebuild_bundle(bundle)


def test_a_bundle_without_its_graph_cannot_be_rebuilt(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"engine")
    options: dict[str, Any] = {"versions": {}, "command": (), "config": {}, "files": ()}
    manifest = Manifest(
        encoder=SPEC,
        target=Target.TENSORRT_RTX,
        precision=Precision.FP16,
        execution=Execution(model_file="model.engine"),
        model=ModelProvenance(name="small", source="registry"),
        **options,
    )
    write_manifest(tmp_path, manifest)
    with pytest.raises(InputError, match=r"holds no onnx/model\.onnx to build from"):
        rebuild_bundle(tmp_path)
