"""A package holds bundles of one model, once each file, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.bench.selftest.run import SELFTEST_FILE
from atlas_edge.bundle import model_folder, verify_bundle
from atlas_edge.errors import ChecksumError, InputError, UsageError
from atlas_edge.export.commands.pack import package_json
from atlas_edge.export.packing.pack import copy_bundle, pack_bundles
from atlas_edge.package.manifest import OWN_FILES, VARIANTS, read_package
from atlas_edge.package.verify import verify_package
from atlas_edge.spec import Precision, Target
from packages import SPEC, make_bundle


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    made = [
        make_bundle(tmp_path / "int8", Target.OPENVINO, Precision.INT8, model=b"other"),
        make_bundle(tmp_path / "bf16", Target.OPENVINO, Precision.BF16),
        make_bundle(tmp_path / "fp32", Target.OPENVINO, Precision.FP32),
    ]
    return made


@pytest.fixture
def package(bundles: list[Path], tmp_path: Path) -> Path:
    pack_bundles(bundles, tmp_path / "package")
    return tmp_path / "package"


def change(package: Path, **values: Any) -> None:
    path = package / VARIANTS
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_equal_files_lie_in_it_once(package: Path) -> None:
    manifest = verify_package(package)
    names = ["openvino-fp32", "openvino-bf16", "openvino-int8"]
    assert [variant.name for variant in manifest.variants] == names
    assert [variant.model_in for variant in manifest.variants] == [None, "openvino-fp32", None]
    assert not list((package / "openvino-bf16").glob("model*"))
    assert SELFTEST_FILE in OWN_FILES
    assert (package / "openvino-bf16" / "README.md").read_text() == "openvino bf16\n"
    assert not [path for path in package.rglob("*") if path.is_symlink()]
    shared = package / "openvino-bf16"
    assert verify_bundle(shared).precision is Precision.BF16
    assert model_folder(shared) == (package / "openvino-fp32").resolve()


def test_what_takes_one_bundle_says_which_there_are(package: Path) -> None:
    with pytest.raises(InputError, match=r"is a package of several bundles\n  fix: .*openvino-bf16, openvino-int8"):
        verify_bundle(package)


def test_it_is_moved_as_a_whole_and_a_variant_is_taken_out_by_packing(package: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "sent"), "zip", package)
    shutil.unpack_archive(tmp_path / "sent.zip", tmp_path / "arrived")
    verify_package(tmp_path / "arrived")
    shutil.copytree(package / "openvino-bf16", tmp_path / "alone")
    with pytest.raises(ChecksumError, match=r"model\.onnx is missing"):
        verify_bundle(tmp_path / "alone")
    copy_bundle(package / "openvino-bf16", verify_bundle(package / "openvino-bf16"), tmp_path / "whole")
    assert verify_bundle(tmp_path / "whole").precision is Precision.BF16
    portable = make_bundle(tmp_path / "portable", Target.OPENVINO, Precision.INT8, model=b"seven", portable=True)
    pack_bundles([package, make_bundle(tmp_path / "onnx"), portable, portable], tmp_path / "more")
    names = [variant.name for variant in verify_package(tmp_path / "more").variants]
    assert names[-3:] == ["openvino-int8", "openvino-int8-portable", "openvino-int8-portable-2"] and len(names) == 6


def test_a_variant_that_is_gone_is_named(package: Path) -> None:
    shutil.rmtree(package / "openvino-int8")
    with pytest.raises(ChecksumError, match=r"openvino-int8 is missing\n  fix: copy the package again"):
        verify_package(package)
    with pytest.raises(ChecksumError, match="openvino-int8 is missing"):
        package_json(package, read_package(package))


def test_bundles_of_other_models_are_not_packed(bundles: list[Path], tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "weights", weights="b" * 64)
    with pytest.raises(UsageError, match="of other weights"):
        pack_bundles([*bundles, other], tmp_path / "package")
    other = make_bundle(tmp_path / "mpp", spec=SPEC.model_copy(update={"mpp": 0.25}))
    with pytest.raises(UsageError, match=r"another encoder than .+: mpp differ"):
        pack_bundles([*bundles, other], tmp_path / "package")
    with pytest.raises(UsageError, match="no bundle"):
        pack_bundles([], tmp_path / "package")
    (bundles[0] / "model.onnx").write_bytes(b"othex")
    with pytest.raises(ChecksumError):
        pack_bundles(bundles, tmp_path / "package")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("variant", ["openvino-fp32", "openvino-bf16", "openvino-int8"])
def test_a_changed_weight_is_found_in_every_variant_that_it_serves(package: Path, variant: str) -> None:
    home = model_folder(package / variant)
    weights = bytearray((home / "weights.bin").read_bytes())
    weights[7] ^= 1
    (home / "weights.bin").write_bytes(weights)
    for check in (lambda: verify_bundle(package / variant), lambda: verify_package(package)):
        with pytest.raises(ChecksumError, match=r"weights\.bin has SHA-256"):
            check()


def test_a_bundle_that_was_put_in_anothers_place_is_found(package: Path, tmp_path: Path) -> None:
    shutil.rmtree(package / "openvino-int8")
    make_bundle(package / "openvino-int8", Target.OPENVINO, Precision.INT8, model=b"sound in itself")
    for check in (lambda: verify_bundle(package / "openvino-int8"), lambda: verify_package(package)):
        with pytest.raises(ChecksumError, match="not the one that the package was made with"):
            check()


def test_what_is_compared_is_what_is_opened(package: Path, bundles: list[Path]) -> None:
    shared, opened = package / "openvino-bf16", package / "openvino-fp32"
    for file in bundles[1].glob("model*"):
        shutil.copyfile(file, shared / file.name)
    with pytest.raises(ChecksumError, match="not in the manifest, or lies in openvino-fp32"):
        verify_bundle(shared)
    for file in opened.glob("model*"):
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(ChecksumError, match="has SHA-256"):
        verify_bundle(shared)


def test_what_was_added_or_changed_beside_the_variants_is_found(package: Path) -> None:
    (package / "run.exe").write_bytes(b"x")
    with pytest.raises(ChecksumError, match=r"run\.exe is not in atlas-package\.json"):
        verify_package(package)
    (package / "run.exe").unlink()
    (package / "README.md").write_text("run this")
    with pytest.raises(ChecksumError, match=r"README\.md is missing or was changed"):
        verify_package(package)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/b", "C:", "..", "", "openvino-fp32/../x", "a\\b", ".hidden"])
@pytest.mark.parametrize("field", ["name", "model_in"])
def test_no_path_leads_outside(package: Path, name: str, field: str) -> None:
    variants = json.loads((package / VARIANTS).read_text())["variants"]
    change(package, variants=[variants[0], variants[1] | {field: name}])
    with pytest.raises(InputError, match="cannot be read"):
        verify_package(package)


@pytest.mark.skipif(shutil.os.name == "nt", reason="links need a privilege there")
def test_a_variant_that_is_a_link_out_of_it_is_refused(package: Path, tmp_path: Path) -> None:
    (package / "openvino-int8").rename(tmp_path / "elsewhere")
    (package / "openvino-int8").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="leads out of the package"):
        verify_package(package)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "schema version None"),
        ('{"schema_version": 2}', "schema version 2, this atlas-edge reads 1"),
        ('{"schema_version": 1}', "Field required"),
    ],
)
def test_unreadable_manifest(package: Path, text: str, message: str) -> None:
    (package / VARIANTS).write_text(text)
    with pytest.raises(InputError, match=message):
        read_package(package)


def test_what_it_says_of_a_variant_must_be_so(package: Path) -> None:
    variants = json.loads((package / VARIANTS).read_text())["variants"]
    change(package, variants=[variants[0] | {"precision": "int8"}])
    with pytest.raises(InputError, match="of another model, target or precision"):
        verify_package(package)
    change(package, variants=[variants[0], variants[0]])
    with pytest.raises(InputError, match="two variants have the same name"):
        read_package(package)
    change(package, variants=[variants[1]])
    with pytest.raises(InputError, match="model files are said to lie where none are"):
        read_package(package)
