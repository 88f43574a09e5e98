from pathlib import Path

import pytest

from atlas_edge.bench.encoders import encoder_labels, open_encoders
from atlas_edge.bundle import sha256_file
from atlas_edge.errors import UsageError


def test_labels_are_folder_names_or_as_much_of_the_path_as_tells_them_apart() -> None:
    assert encoder_labels(["a/int8", "a/bf16/"], "models/m") == ["m", "int8", "bf16"]
    assert encoder_labels(["x/int8", "y/int8"]) == ["x/int8", "y/int8"]
    assert encoder_labels(["int8", "a/int8"]) == ["int8", "a/int8"]


def test_the_reference_may_be_a_candidate_too() -> None:
    assert encoder_labels(["a/int8"], "a/int8") == ["int8 (reference)", "int8"]


def test_a_candidate_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="named twice"):
        encoder_labels(["a", "b", "a"])


def test_facts_of_a_bundle_and_of_a_model(bundle: Path, tiny_model: Path) -> None:
    with open_encoders([str(bundle)], str(tiny_model)) as opened:
        assert (opened.reference, opened.candidates) == ("tiny-vit", ("tiny",))
        model, deployed = opened.facts["tiny-vit"], opened.facts["tiny"]
    assert (model.is_reference, model.precision, model.target) == (True, "fp32", None)
    assert (deployed.is_reference, deployed.precision, deployed.target) == (False, "int8", "openvino")
    assert deployed.runtime.startswith("OpenVINO")
    sizes = [(bundle / name).stat().st_size for name in ("model.xml", "model.bin")]
    assert deployed.size_bytes == sum(sizes)
    assert model.size_bytes == (tiny_model / "model.safetensors").stat().st_size
    assert deployed.sha256 == sha256_file(bundle / "manifest.json")
    assert model.sha256 == sha256_file(tiny_model / "model.safetensors")
