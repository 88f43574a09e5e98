"""What a folder of a known encoder does not say comes from the table; what it says holds; who may not enter is told."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("timm")

from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.load import load_model
from support import write_timm_folder

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
# The architecture that UNI and KEEP have, at the size of a test.
LARGE = "vit_large_patch16_224"


def folder(tmp_path: Path, architecture: str = LARGE, **options: Any) -> Path:
    options = {"init_values": 0.1, "config_args": VIT | {"init_values": 0.1}} | options
    return write_timm_folder(tmp_path / "model", architecture, **(VIT | options))


def said(assumptions: tuple[str, ...]) -> str:
    return "\n".join(assumptions)


def test_what_the_folder_leaves_out_is_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path, cfg={"mean": None, "std": None})
    model = load_model(str(path), known="uni")
    assert (model.spec.mean, model.spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (model.spec.mpp, model.provenance.licence) == (0.5, "cc-by-nc-nd-4.0")
    assert model.provenance.assumptions == (
        "config.json leaves out what UNI is published with, which was taken: mean and deviation, 0.5 µm per pixel, "
        "licence cc-by-nc-nd-4.0",
    )
    assert "leaves out what UNI" in caplog.text


def test_the_network_is_built_for_the_published_size(tmp_path: Path) -> None:
    shape = {name: value for name, value in VIT.items() if name != "img_size"}
    path = folder(tmp_path, "vit_small_patch14_dinov2", img_size=64, config_args=shape, cfg={"input_size": None})
    assert load_model(str(path), known="dinov2-s").spec.tile_px == 518


def test_the_name_may_stand_in_the_folder(tmp_path: Path) -> None:
    path = folder(tmp_path, top={"name": "uni"}, cfg={"mean": None, "std": None})
    assert load_model(str(path)).spec.mpp == 0.5
    unknown = json.loads((path / "config.json").read_text()) | {"name": "something of mine"}
    (path / "config.json").write_text(json.dumps(unknown))
    assert load_model(str(path)).spec.mpp is None


def test_what_the_folder_says_holds_and_is_compared(tmp_path: Path) -> None:
    path = folder(tmp_path, top={"mpp": 2.0}, cfg={"license": "mit"})
    model = load_model(str(path), known="uni")
    assert (model.spec.mean, model.spec.mpp, model.provenance.licence) == ((0.5, 0.4, 0.6), 2.0, "mit")
    sentences = said(model.provenance.assumptions)
    for fact in ("mean [0.5, 0.4, 0.6]", "std", "mpp 2.0", "license mit"):
        assert f"config.json says {fact}" in sentences
    assert "leaves out" not in sentences


def test_layers_that_the_config_cannot_name(tmp_path: Path) -> None:
    """As UNI2-h, Virchow2 and H0-mini are published: the arguments stand in their cards alone."""
    import timm
    from torch import nn

    gated = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 64 / 48}
    path = folder(tmp_path, "vit_huge_patch14_224", reg_tokens=4, config_args=VIT | {"mlp_ratio": 64 / 48}, **gated)
    model = load_model(str(path), known="virchow2")
    assert (model.spec.registers, model.spec.pooling, model.spec.embed_dim) == (4, "cls+mean", 96)
    sentences = said(model.provenance.assumptions)
    assert "model_args act_layer, init_values, mlp_layer, reg_tokens" in sentences and "mlp_ratio 1.33" in sentences
    assert "names no pooling: cls+mean was taken, as it is published" in sentences


@pytest.mark.parametrize(
    ("top", "arguments", "pooling", "expected"),
    [
        ({}, {"global_pool": ""}, None, ("cls+mean", None)),
        ({}, {"global_pool": "token"}, None, ("cls", None)),
        ({}, {"global_pool": ""}, "cls", ("cls", None)),
        ({"pooling": "cls"}, {}, None, ("cls", None)),
        ({"pooling": "cls+mean"}, {"global_pool": "token"}, None, ("cls+mean", None)),
        ({"pooling": "cls+mean"}, {"global_pool": "token"}, "avg", ("avg", "cls")),
    ],
    ids=str,
)
def test_pooling(
    top: dict[str, str], arguments: dict[str, str], pooling: Any, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    path = folder(tmp_path, "vit_huge_patch14_224", top=top, config_args=VIT | arguments | {"reg_tokens": 0})
    config = json.loads((path / "config.json").read_text())
    config["model_args"] |= {"mlp_layer": "Mlp", "act_layer": "gelu", "mlp_ratio": 4}
    (path / "config.json").write_text(json.dumps(config))
    model = load_model(str(path), known="virchow2", pooling=pooling)
    assert (model.spec.pooling, model.spec.own_pooling) == expected
    odds = "says the pooling" in said(model.provenance.assumptions)
    assert odds == (expected[0] == "cls" and pooling is None)


def test_a_pooling_that_cannot_be(tmp_path: Path) -> None:
    path = folder(tmp_path, top={"pooling": "max"})
    with pytest.raises(InputError, match="pooling is max"):
        load_model(str(path))
    shutil.rmtree(path)
    shape = VIT | {"class_token": False, "global_pool": "avg"}
    path = write_timm_folder(tmp_path / "model", LARGE, top={"pooling": "cls"}, **shape)
    with pytest.raises(InputError, match="no CLS token"):
        load_model(str(path))


def test_an_architecture_of_somebody_s_own_is_that_of_the_table(tmp_path: Path) -> None:
    """As GigaPath-Flash is published."""
    import timm
    from torch import nn

    gated = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 256 / 48, "init_values": 0.1}
    path = folder(tmp_path, "vit_small_patch16_224", config_args=VIT, **gated)
    config = json.loads((path / "config.json").read_text()) | {"architecture": "gigapath_tile_enc_dinov2s"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="which timm"):
        load_model(str(path))
    model = load_model(str(path), known="gigapath-flash")
    assert model.spec.architecture == "vit_small_patch16_224"
    assert "architecture vit_small_patch16_224" in said(model.provenance.assumptions)


def test_another_architecture_keeps_its_arguments(tmp_path: Path) -> None:
    model = load_model(str(folder(tmp_path, "vit_tiny_patch16_224")), known="uni2-h")
    assert model.spec.registers == 0
    assert "architecture vit_tiny_patch16_224, UNI2-h is published with" in said(model.provenance.assumptions)


@pytest.mark.parametrize("name", ["conch-v1.5", "rudolfv-2-s"])
def test_what_cannot_be_loaded_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded") as refused:
        load_model(str(folder(tmp_path)), known=name)
    assert "\n" not in refused.value.message
    with pytest.raises(UsageError, match="no known encoder"):
        load_model(str(tmp_path / "model"), known="nobody")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache: Path, repository: str, model: Path, commit: str = "b" * 40) -> Path:
    """A folder as huggingface_hub keeps it."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(model, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return place / "snapshots" / commit


def test_a_repository_of_the_cache_is_known(offline: Path, tmp_path: Path) -> None:
    cached(offline, "MahmoodLab/UNI", folder(tmp_path, cfg={"mean": None, "std": None}))
    model = load_model("hf-hub:MahmoodLab/UNI")
    assert (model.provenance.revision, model.provenance.licence) == ("b" * 40, "cc-by-nc-nd-4.0")
    assert model.spec.name == "UNI" and model.spec.mpp == 0.5


def test_a_repository_with_a_pickle_says_how_to_bring_it(offline: Path, tmp_path: Path) -> None:
    snapshot = cached(offline, "MahmoodLab/UNI", folder(tmp_path))
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no model\.safetensors") as refused:
        load_model("hf-hub:MahmoodLab/UNI")
    assert f"atlas-export import {snapshot / 'pytorch_model.bin'} --as uni --out" in str(refused.value.hint)


def test_a_gated_repository_that_is_not_in_the_cache(offline: Path) -> None:
    with pytest.raises(InputError, match="hf-hub:paige-ai/Virchow2") as refused:
        load_model("hf-hub:paige-ai/Virchow2")
    assert "it is gated: ask for access on its page, then hf auth login" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("status", "kind", "repository", "message"),
    [
        (403, "GatedRepoError", "paige-ai/Virchow2", "is gated, and this login has no access"),
        (401, "GatedRepoError", "someone/secret", "is gated, and this login has no access"),
        (401, "RepositoryNotFoundError", "paige-ai/Virchow2", "is gated, and this login has no access"),
        (401, "RepositoryNotFoundError", "someone/nothing", "is not open to this login"),
        (403, "HfHubHTTPError", "someone/private", "is not open to this login"),
    ],
)
def test_who_has_no_access_is_told_how_to_get_it(
    status: int, kind: str, repository: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import errors

    # The hub's errors hold the answer of whatever library it asks with.
    response = SimpleNamespace(status_code=status, headers={}, request=None)

    def refuse(*args: Any, **options: Any) -> str:
        raise getattr(errors, kind)("Access to this is restricted", response=response)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=message) as refused:
        load_model(f"hf-hub:{repository}")
    assert refused.value.hint is not None
    assert f"huggingface.co/{repository}" in refused.value.hint and "hf auth login" in refused.value.hint
