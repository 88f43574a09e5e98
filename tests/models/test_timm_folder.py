"""A model folder gives the network that timm makes of it, or an error that says what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm")

from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.load import LoadedModel, load_model
from support import timm_embedding, write_timm_folder

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
SMALL = {name: value for name, value in VIT.items() if name != "img_size"}


def folder(tmp_path: Path, architecture: str = "vit_tiny_patch16_224", **options: Any) -> Path:
    return write_timm_folder(tmp_path / "model", architecture, **(VIT | options))


def embed(model: LoadedModel) -> tuple[Any, Any]:
    import torch

    px = model.spec.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (2, px, px, 3), dtype=np.uint8)
    with torch.inference_mode():
        return model.module(torch.from_numpy(tiles)).numpy(), tiles


def test_the_flat_form_of_config_json_is_read(tmp_path: Path) -> None:
    path = folder(tmp_path)
    config = json.loads((path / "config.json").read_text())
    flat = {"architecture": config["architecture"], "model_args": VIT, "mean": [0.5] * 3, "std": [0.25] * 3}
    (path / "config.json").write_text(json.dumps(flat | {"license": "cc-by-4.0", "mpp": 0.5}))
    model = load_model(str(path))
    assert (model.spec.mean, model.spec.std, model.spec.mpp) == ((0.5,) * 3, (0.25,) * 3, 0.5)
    assert model.provenance.licence == "cc-by-4.0"
    assert not model.provenance.assumptions or "ImageNet" not in model.provenance.assumptions[0]


def test_a_mean_that_is_not_stated_is_said_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(str(folder(tmp_path, cfg={"mean": None})))
    assert model.spec.mean == (0.485, 0.456, 0.406)
    assert model.provenance.assumptions == ("config.json states no mean: ImageNet's were taken",)
    assert "states no mean" in caplog.text


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"mean": [180, 150, 180]}, r"mean\.0 is 180"),
        ({"mean": [0.5]}, "mean"),
        ({"mean": [0.5] * 4}, "mean"),
        ({"mean": 0.5}, "mean"),
        ({"mean": ["a", "b", "c"]}, r"mean\.0 is a"),
        ({"std": [0, 0, 0]}, r"std\.0 is 0"),
        ({"std": [-0.2, 0.2, 0.2]}, r"std\.0 is -0\.2"),
        ({"std": [float("nan")] * 3}, r"std\.0 is nan"),
        ({"mpp": "half"}, "mpp is half"),
        ({"mpp": 0}, "mpp is 0"),
        ({"license": ["mit"]}, "license"),
        ({"input_size": [1, 32, 32]}, "1 channels, tiles are RGB"),
        ({"input_size": 32}, "input_size"),
    ],
    ids=str,
)
def test_preprocessing_that_cannot_be_is_refused(cfg: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_model(str(folder(tmp_path, cfg=cfg)))


def test_one_channel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes 1 channels, tiles are RGB"):
        load_model(str(folder(tmp_path, in_chans=1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 0}, "cannot build"),
        ({"num_heads": 0}, "cannot build"),
        ({"depth": "two"}, "cannot build"),
        ({"act_layer": "nope"}, "names act_layer 'nope'"),
        ({"norm_layer": "os.system"}, "names norm_layer 'os.system'"),
        ({"mlp_layer": "eval"}, "names mlp_layer 'eval'"),
        ({"embed_layer": "PatchEmbed"}, "a name cannot stand for"),
        ({"pretrained_model_args": {}}, "holds 'pretrained_model_args'"),
        ({"features_only": True}, "holds 'features_only'"),
        ({"state_dict": {}}, "holds 'state_dict'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_shape_the_network_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_model(str(folder(tmp_path, config_args=VIT | arguments)))


@pytest.mark.parametrize("content", ["[]", '"text"', "{", '{"architecture": 7}', "[" * 100_000, '{"model_args": []}'])
def test_a_config_of_another_form_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_model(str(tmp_path))


def test_a_transformers_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"], "model_type": "vit", "hidden_size": 96}')
    with pytest.raises(InputError, match=r"transformers folder \(vit\)"):
        load_model(str(tmp_path))


def test_a_pickled_checkpoint_says_what_converts_it(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "model.safetensors").rename(path / "weights.pth")
    with pytest.raises(InputError, match=r"there is weights\.pth") as refused:
        load_model(str(path))
    assert f"atlas-export import {path / 'weights.pth'} --out FOLDER" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("weights_px", "options"),
    [
        (64, {"config_args": VIT}),
        (64, {"config_args": SMALL, "cfg": {"input_size": [3, 32, 32], "fixed_input_size": True}}),
        (32, {"config_args": SMALL, "cfg": {"input_size": [3, 32, 32], "fixed_input_size": True}}),
        (224, {"config_args": SMALL | {"dynamic_img_size": True}, "cfg": {"input_size": [3, 32, 32]}}),
    ],
    ids=["model_args", "fixed_input_size", "as stored", "dynamic"],
)
def test_position_embeddings_of_another_size_are_resampled_as_timm_does(
    weights_px: int, options: dict[str, Any], tmp_path: Path
) -> None:
    model = load_model(str(folder(tmp_path, img_size=weights_px, **options)))
    assert model.spec.tile_px == 32
    found, tiles = embed(model)
    np.testing.assert_allclose(found, timm_embedding(tmp_path / "model", tiles), atol=1e-5)


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_another_tile_size_can_be_had(architecture: str, tmp_path: Path) -> None:
    path = folder(tmp_path, architecture)
    model = load_model(str(path), tile_px=48)
    assert model.spec.tile_px == 48
    found, tiles = embed(model)
    np.testing.assert_allclose(found, timm_embedding(path, tiles, img_size=48), atol=1e-5)


def test_a_size_that_timm_leaves_unread_is_said(tmp_path: Path) -> None:
    model = load_model(str(folder(tmp_path, img_size=224, config_args=SMALL, cfg={"input_size": [3, 518, 518]})))
    assert model.spec.tile_px == 224
    assert "--tile-px 518" in model.provenance.assumptions[0]


@pytest.mark.parametrize(("architecture", "registers"), [("vit_tiny_patch16_224", 0), ("vit_small_patch16_dinov3", 4)])
def test_the_size_is_fixed_when_the_network_is_built(architecture: str, registers: int, tmp_path: Path) -> None:
    model = load_model(str(folder(tmp_path, architecture, dynamic_img_size=True)))
    assert (model.spec.registers, model.spec.patch) == (registers, 8)
    assert model.module.backbone.dynamic_img_size is False
    found, tiles = embed(model)
    np.testing.assert_allclose(found, timm_embedding(tmp_path / "model", tiles), atol=1e-5)


def _gated() -> dict[str, Any]:
    import timm
    from torch import nn

    return {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"},
        {"mlp_layer": "timm.layers.SwiGLUPacked", "act_layer": "torch.nn.SiLU"},
    ],
    ids=["from the weights", "by name", "by path"],
)
def test_gated_mlps_are_built(names: dict[str, str], tmp_path: Path) -> None:
    import timm
    import torch
    from safetensors.torch import load_file

    path = folder(tmp_path, config_args=VIT | names, **_gated())
    model = load_model(str(path))
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT, **_gated()).eval()
    network.load_state_dict(load_file(path / "model.safetensors"))
    _, tiles = embed(model)
    with torch.inference_mode():
        images = model.module.normalise(torch.from_numpy(tiles))
        torch.testing.assert_close(model.module.embed(images), network(images))
    assert bool(names) is not any("SwiGLU" in assumption for assumption in model.provenance.assumptions)


def test_plain_mlps_are_not_taken_for_gated_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not fit the architecture: size mismatch for blocks\.0\.mlp\.fc1"):
        load_model(str(folder(tmp_path, config_args=VIT | {"mlp_ratio": 2})))


def test_weights_that_a_lenient_family_lacks_are_missed(tmp_path: Path) -> None:
    """timm loads DLA without strictness."""
    from safetensors.torch import load_file, save_file

    path = write_timm_folder(tmp_path / "model", "dla46x_c", cfg={"input_size": [3, 64, 64]})
    with pytest.raises(UsageError, match="no CLS token"):
        load_model(str(path), pooling="cls")
    state = load_file(path / "model.safetensors")
    lost = next(name for name in state if name.endswith("conv2.weight"))
    del state[lost]
    save_file(state, path / "model.safetensors")
    with pytest.raises(InputError, match=f"it lacks {lost}"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("options", "pooling", "expected"),
    [
        ({"global_pool": "avg"}, "cls", ("cls", "avg", 48)),
        ({"global_pool": "avg"}, "avg", ("avg", None, 48)),
        ({}, "cls+mean", ("cls+mean", "cls", 96)),
        ({"global_pool": ""}, None, ("cls", None, 48)),
        ({"global_pool": ""}, "cls+mean", ("cls+mean", None, 96)),
    ],
    ids=str,
)
def test_another_pooling_is_recorded(
    options: dict[str, str], pooling: Any, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    model = load_model(str(folder(tmp_path, **options)), pooling=pooling)
    assert (model.spec.pooling, model.spec.own_pooling, model.spec.embed_dim) == expected
    said = [assumption for assumption in model.provenance.assumptions if "no pooling" in assumption]
    assert len(said) == (options == {"global_pool": ""} and pooling is None)


def test_another_pooling_keeps_the_norm_that_comes_last(tmp_path: Path) -> None:
    import torch

    model = load_model(str(folder(tmp_path, global_pool="avg")), pooling="cls+mean")
    found, tiles = embed(model)
    with torch.inference_mode():
        tokens = model.module.tokens(model.module.normalise(torch.from_numpy(tiles)))
        norm = model.module.backbone.fc_norm
        expected = torch.cat([norm(tokens[:, 0]), norm(tokens[:, 1:].mean(1))], 1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("options", [{"class_token": False}, {"class_token": False, "reg_tokens": 2}], ids=str)
@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
def test_a_register_is_no_class_token(options: dict[str, Any], pooling: Any, tmp_path: Path) -> None:
    path = folder(tmp_path, global_pool="avg", **options)
    assert load_model(str(path)).spec.registers == options.get("reg_tokens", 0)
    with pytest.raises(UsageError, match="no CLS token"):
        load_model(str(path), pooling=pooling)


def test_tokens_are_no_embedding(tmp_path: Path) -> None:
    path = folder(tmp_path, global_pool="", class_token=False, reg_tokens=2)
    with pytest.raises(InputError, match=r"returns an array of shape \(1, 18, 48\), expected one vector a tile"):
        load_model(str(path))
    assert load_model(str(path), pooling="avg").spec.embed_dim == 48


def test_a_feature_map_is_no_embedding(tmp_path: Path) -> None:
    path = write_timm_folder(tmp_path / "model", "resnet18", global_pool="", cfg={"input_size": [3, 64, 64]})
    with pytest.raises(InputError, match="expected one vector a tile"):
        load_model(str(path))
