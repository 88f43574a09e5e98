import platform
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.bundle import open_bundle, write_manifest
from atlas_edge.errors import RuntimeMissing, UsageError
from atlas_edge.manifest import Execution, Manifest, ModelProvenance
from atlas_edge.runtimes import tensorrt_library
from atlas_edge.runtimes.tensorrt_fit import check_fit
from atlas_edge.runtimes.tensorrt_library import LIBRARIES, TensorRTLibrary, import_library
from atlas_edge.spec import EncoderSpec, Precision, Target
from atlas_edge.system.gpu_probe import Gpu, GpuProbe, probe_gpu

SPEC = EncoderSpec(
    name="fake", architecture="fake", embed_dim=4, tile_px=8, mean=(0, 0, 0), std=(1, 1, 1), pooling="cls"
)
NO_GPU = GpuProbe(driver=None, gpus=(), problem="no NVIDIA driver is installed")
HERE = f"{platform.system()} x86_64"


def gpu(capability: str) -> Gpu:
    return Gpu(name=f"RTX {capability}", compute_capability=capability, memory_bytes=8 << 30)


def probe(*capabilities: str) -> GpuProbe:
    return GpuProbe(driver="13.0", gpus=tuple(map(gpu, capabilities)), problem="")


def manifest(library: Any = "tensorrt_rtx", *, built: str = "1.7.1.116", on: str = HERE, **execution: Any) -> Manifest:
    return Manifest(
        encoder=SPEC,
        target=Target.TENSORRT,
        precision=Precision.FP16,
        execution=Execution(
            model_file="model.engine",
            engine_library=library,
            **{"compute_capabilities": ("8.6", "8.9"), "fallback_file": "model.onnx", **execution},
        ),
        versions={library.replace("_", "-"): built, "platform": on},
        command=("atlas-export",),
        config={},
        model=ModelProvenance(name="fake", source="registry"),
        files=(),
    )


def test_the_first_gpu_that_the_engine_fits_is_taken() -> None:
    fit = check_fit(Path("b"), manifest(), version="1.7.1.116", probe=probe("12.0", "8.9", "8.6"))
    assert (fit.device, fit.gpu.compute_capability) == (1, "8.9")


def test_a_gpu_can_be_named() -> None:
    def fit(device: str | None) -> int:
        return check_fit(
            Path("b"), manifest(), version="1.7.1.116", probe=probe("8.6", "12.0", "8.9"), device=device
        ).device

    assert [fit(device) for device in (None, "cuda", "cuda:2", "2", "GPU:0")] == [0, 0, 2, 2, 0]
    with pytest.raises(RuntimeMissing, match=r"this machine has .*RTX 12.0"):
        fit("cuda:1")
    with pytest.raises(RuntimeMissing, match="--device cuda:3: no such GPU here"):
        fit("cuda:3")
    with pytest.raises(UsageError, match="--device NPU"):
        fit("NPU")


@pytest.mark.parametrize(
    ("built", "version", "capability", "found"),
    [
        (manifest(), "1.7.1.116", "12.0", "this machine has RTX 12.0 (12.0)"),
        (manifest(), "1.8.0.2", "8.9", "here is TensorRT-RTX 1.8.0.2"),
        (manifest("tensorrt", built="11.4.0.106"), "11.4.1.7", "8.9", "here is TensorRT 11.4.1.7"),
        (manifest("tensorrt", built="11.4.0", on="Amiga 68k"), "11.4.0", "8.9", f"this is {platform.system()}"),
        (
            manifest("tensorrt", built="11.4.0", engine_options=("version_compatible",)),
            "11.3.0",
            "8.9",
            "here is TensorRT 11.3.0",
        ),
    ],
)
def test_an_engine_for_another_machine_says_what_it_was_built_for_and_how_to_rebuild(
    built: Manifest, version: str, capability: str, found: str
) -> None:
    with pytest.raises(RuntimeMissing) as refused:
        check_fit(Path("bundle"), built, version=version, probe=probe(capability))
    assert found in refused.value.message
    assert "was built for TensorRT" in refused.value.message
    assert "compute capability 8.6, 8.9" in refused.value.message
    assert refused.value.hint == "atlas-export rebuild bundle"


@pytest.mark.parametrize(
    ("built", "version", "capability"),
    [
        (manifest(on="Windows AMD64"), "1.7.1.116", "8.6"),
        (manifest("tensorrt", built="11.4.0", engine_options=("version_compatible",)), "11.4.1", "8.9"),
        (manifest("tensorrt", built="11.4.0", engine_options=("hardware_compatible",)), "11.4.0", "12.0"),
    ],
)
def test_compatible_engines_are_taken(built: Manifest, version: str, capability: str) -> None:
    assert check_fit(Path("b"), built, version=version, probe=probe(capability)).gpu == gpu(capability)


def test_without_a_gpu_the_fallback_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissing, match="no NVIDIA driver is installed") as missing:
        check_fit(tmp_path, manifest(), version="1.7.1.116", probe=NO_GPU)
    assert missing.value.hint is not None
    assert str(tmp_path / "model.onnx") in missing.value.hint
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "manifest.json").write_text("{}")
    with pytest.raises(RuntimeMissing) as missing:
        check_fit(tmp_path, manifest(), version="1.7.1.116", probe=NO_GPU)
    assert missing.value.hint == (
        f"use its fallback bundle, which runs on the CPU (slowly; --target openvino is fast there): {tmp_path / 'onnx'}"
    )


def test_a_bundle_opened_without_a_gpu_leaves_with_exit_code_4(tmp_path: Path) -> None:
    if probe_gpu().gpus:
        pytest.skip("this machine has a GPU")
    (tmp_path / "model.engine").write_bytes(b"engine")
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, manifest())
    with pytest.raises(RuntimeMissing) as missing:
        open_bundle(tmp_path)
    assert missing.value.exit_code == 4


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_a_library_that_cannot_be_loaded_is_installed_anew_alone(
    library: TensorRTLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise OSError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr(tensorrt_library, "installed_version", lambda library: "11.1.0")
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    with pytest.raises(RuntimeMissing, match="cannot be loaded") as error:
        import_library(library)
    # Forced to install itself anew, atlas-edge would be looked for on an index that has none.
    assert error.value.hint == f"pip install --force-reinstall {library.module.replace('_', '-')}"
