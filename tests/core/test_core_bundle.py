import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.bundle import read_manifest, verify_bundle, write_manifest
from atlas_edge.errors import ChecksumError, InputError
from atlas_edge.manifest import Execution, Manifest, ModelProvenance
from atlas_edge.spec import EncoderSpec, Precision, Target

SPEC = EncoderSpec(
    name="tiny", architecture="vit", embed_dim=4, tile_px=32, mean=(0.5,) * 3, std=(0.5,) * 3, pooling="cls", patch=8
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "sub" / "weights.bin").write_bytes(b"0123456789")
    manifest = Manifest(
        encoder=SPEC,
        target=Target.ONNX,
        precision=Precision.FP32,
        execution=Execution(model_file="model.onnx"),
        versions={},
        command=(),
        config={},
        model=ModelProvenance(name="tiny", source="registry"),
        files=(),
    )
    write_manifest(folder, manifest)
    return folder


def change(bundle: Path, **values: Any) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_intact_bundle_verifies(bundle: Path) -> None:
    manifest = verify_bundle(bundle)
    assert [(file.path, file.size_bytes) for file in manifest.files] == [("model.onnx", 5), ("sub/weights.bin", 10)]
    assert manifest.encoder == SPEC


def test_changed_byte_is_found(bundle: Path) -> None:
    (bundle / "sub" / "weights.bin").write_bytes(b"0123456780")
    with pytest.raises(ChecksumError, match=r"weights\.bin has SHA-256"):
        verify_bundle(bundle)


def test_truncated_file_is_found(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"gra")
    with pytest.raises(ChecksumError, match="has 3 bytes, the manifest says 5"):
        verify_bundle(bundle)


def test_missing_file_is_found(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    with pytest.raises(ChecksumError, match=r"model\.onnx is missing"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["sub/plugin.so", ".scratch/plugin.so", ".hidden"])
def test_added_file_is_found(name: str, bundle: Path) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"x")
    with pytest.raises(ChecksumError, match=f"{name} is not in the manifest"):
        verify_bundle(bundle)


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are elsewhere there")
def test_what_is_no_file_is_found_too(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe")
    with pytest.raises(ChecksumError, match="pipe is not in the manifest"):
        verify_bundle(bundle)
    (bundle / "pipe").unlink()
    (bundle / "sub" / "empty").mkdir()
    with pytest.raises(ChecksumError, match="sub/empty/ is not in the manifest"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../outside", "/etc/hostname", "sub/../../outside", "C:/outside", "C:outside", "..\\outside", "\\outside",
        "\\\\host\\share\\outside", "sub/.. /../outside", "model.onnx:stream", "sub//x", "./model.onnx", "", "a\0b",
    ],
)  # fmt: skip
def test_path_outside_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "outside").write_bytes(b"x")
    change(bundle, files=[{"path": name, "sha256": "0" * 64, "size_bytes": 1}])
    with pytest.raises(InputError, match="outside the bundle"):
        verify_bundle(bundle)


def test_link_out_of_the_bundle_is_refused(bundle: Path) -> None:
    (bundle.parent / "outside").write_bytes(b"graph")
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to(bundle.parent / "outside")
    with pytest.raises(InputError, match="outside the bundle"):
        verify_bundle(bundle)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_folder_that_links_out_of_the_bundle_is_refused(bundle: Path) -> None:
    (bundle / "sub").rename(bundle.parent / "outside")
    (bundle / "sub").symlink_to(bundle.parent / "outside")
    with pytest.raises(InputError, match="outside the bundle"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    "execution", [{"batch": -1}, {"batch": 0}, {"batch": 10**9}, {"batch_profile": [0, 1, 2]}, {"batch": "many"}]
)
def test_a_batch_that_cannot_be_is_refused(bundle: Path, execution: dict[str, Any]) -> None:
    change(bundle, execution={"model_file": "model.onnx", **execution})
    with pytest.raises(InputError, match=r"execution\.batch"):
        verify_bundle(bundle)


def test_model_file_must_be_a_listed_file(bundle: Path) -> None:
    change(bundle, execution={"model_file": "../evil.onnx"})
    with pytest.raises(InputError, match="not one of its files"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99, this atlas-edge reads 1 and 2"),
        ('{"schema_version": 1}', "Field required"),
    ],
)
def test_unreadable_manifest(bundle: Path, text: str, message: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(bundle)


def test_a_bundle_of_the_first_schema_is_read(bundle: Path) -> None:
    change(bundle, schema_version=1)
    assert verify_bundle(bundle).schema_version == 1


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no bundle"):
        read_manifest(tmp_path)
