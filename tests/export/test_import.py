"""`atlas-export import`: names and shapes change, embeddings do not; every tensor has its place."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm")

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from atlas_edge.cli import run_app
from atlas_edge.errors import InputError, UsageError
from atlas_edge.export.cli import app
from atlas_edge.export.importing import RECORD, import_model, open_source
from atlas_edge.models.load import LoadedModel, load_model
from support import disk_full_after, write_timm_folder

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
GATED: dict[str, Any] = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 64 / 48}
GATED_BY_NAME = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "mlp_ratio": 64 / 48}


def network(architecture: str = "vit_tiny_patch16_224", **arguments: Any) -> Any:
    torch.manual_seed(0)
    made = timm.create_model(architecture, num_classes=0, **(VIT | arguments)).eval()
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made


def hub_folder(folder: Path, made: Any, wrapped: Any = None, **config: Any) -> Path:
    """As repositories are whose weights are pickled: `config.json` in timm's form and `pytorch_model.bin`."""
    folder.mkdir()
    torch.save(made.state_dict() if wrapped is None else wrapped, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(
        json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": VIT} | config)
    )
    return folder


def bring(path: Path, tmp_path: Path, known: str | None = None) -> LoadedModel:
    imported = import_model(open_source(path, known=known), tmp_path / "out", overwrite=False)
    assert imported.compared_with == "timm's own network" and imported.difference is not None
    assert imported.difference < 1e-6
    return load_model(str(tmp_path / "out"))


def embedding(model: LoadedModel) -> torch.Tensor:
    tiles = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        found: torch.Tensor = model.module(torch.from_numpy(tiles))
    return found


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        ("", lambda state: state),
        ("visual.", lambda state: {"model": state}),
        ("module.backbone.", lambda state: {"epoch": 3, "state_dict": {"teacher": state}}),
    ],
    ids=["bare", "a tower", "in training"],
)
def test_a_pickled_checkpoint_is_brought_to_timm_s_form(prefix: str, wrap: Any, tmp_path: Path) -> None:
    made = network()
    state = {prefix + name: value for name, value in made.state_dict().items()}
    folder = hub_folder(tmp_path / "hub", made, wrap(state), mpp_range=[0.25, 2])
    model = bring(folder / "pytorch_model.bin", tmp_path, "uni")
    images = model.module.normalise(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with torch.inference_mode():
        torch.testing.assert_close(model.module.embed(images), made(images))
    assert model.provenance.licence == "cc-by-nc-nd-4.0" and model.spec.mpp == 0.5
    assert model.spec.mpp_range == (0.25, 2.0)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["from"], record["known_encoder"]) == ("pytorch_model.bin", "uni")
    assert str(tmp_path) not in json.dumps(record)


def test_the_published_pooling_comes_with_a_known_encoder(tmp_path: Path) -> None:
    made = network(reg_tokens=2, **GATED)
    folder = hub_folder(tmp_path / "hub", made, model_args=VIT | GATED_BY_NAME | {"reg_tokens": 2})
    model = bring(folder, tmp_path, "virchow2")
    assert (model.spec.pooling, model.spec.own_pooling, model.spec.embed_dim) == ("cls+mean", None, 96)
    assert not [sentence for sentence in model.provenance.assumptions if "pooling" in sentence or "px" in sentence]
    made.global_pool = ""
    images = model.module.normalise(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with torch.inference_mode():
        tokens = made(images)
        expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1)
        torch.testing.assert_close(model.module.embed(images), expected)


@pytest.mark.parametrize("chunked", [False, True], ids=["blocks", "chunks"])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_s_own_names_are_known(registers: int, chunked: bool, tmp_path: Path) -> None:
    shape = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    made = network(init_values=0.1, **shape, **GATED)
    state = {}
    for name, value in made.state_dict().items():
        name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        state[name.replace("blocks.", "blocks.0.") if chunked else name] = value
    state["mask_token"] = torch.zeros(1, 48)
    if registers:
        position = torch.randn(1, 1, 48)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    teacher = {"backbone." + name: value for name, value in state.items()} | {"dino_head.last.weight": torch.zeros(2)}
    arguments = VIT | GATED_BY_NAME | shape | {"init_values": 0.1}
    folder = hub_folder(tmp_path / "hub", made, {"teacher": teacher}, model_args=arguments)
    source = open_source(folder, known=None)
    assert source.aside == ("dino_head.last.weight", "mask_token")
    import_model(source, tmp_path / "out", overwrite=False)
    model = load_model(str(tmp_path / "out"))
    images = model.module.normalise(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with torch.inference_mode():
        torch.testing.assert_close(model.module.embed(images), made(images))


def as_transformers(made: Any, *, dinov2: bool) -> dict[str, torch.Tensor]:
    """A timm network's tensors under the names that transformers has for them."""
    outside = {
        "cls_token": "embeddings.cls_token",
        "norm": "layernorm",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
    }
    outside |= {"pos_embed": "embeddings.position_embeddings", "reg_token": "embeddings.register_tokens"}
    inside = {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    inside |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    if dinov2:
        inside |= {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        if hasattr(made.blocks[0].mlp, "gate_last"):
            inside |= {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
    found: dict[str, torch.Tensor] = {}
    for name, value in made.state_dict().items():
        _, _, rest = name.partition("blocks.")
        block, _, part = rest.partition(".")
        layer, _, leaf = (part or name).rpartition(".")
        if not rest:
            key = outside[name] if name in outside else f"{outside[layer]}.{leaf}"
            found[key] = value
        elif layer == "attn.qkv":
            for third, product in zip(value.chunk(3), ("query", "key", "value"), strict=True):
                found[f"encoder.layer.{block}.attention.attention.{product}.{leaf}"] = third.clone()
        elif leaf == "gamma":
            found[f"encoder.layer.{block}.layer_scale{layer[-1]}.lambda1"] = value
        else:
            found[f"encoder.layer.{block}.{inside[layer]}.{leaf}"] = value
    return found


def transformers_folder(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    stated = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    (folder / "config.json").write_text(json.dumps(stated | config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_mean": [0.5, 0.4, 0.6], "image_std": [0.2, 0.25, 0.3], "crop_size": {"height": 32, "width": 32}}
        )
    )
    return folder


@pytest.mark.parametrize(
    ("kind", "shape", "config"),
    [
        ("vit", {}, {"intermediate_size": 192}),
        ("vit", {"mlp_ratio": 100.5 / 48}, {"intermediate_size": 100, "layer_norm_eps": 1e-6}),
        ("dinov2", {"init_values": 0.1}, {}),
        ("dinov2", {"init_values": 0.1} | GATED | {"mlp_ratio": 256 / 48}, {"use_swiglu_ffn": True}),
        (
            "dinov2_with_registers",
            {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True},
            {"num_register_tokens": 4},
        ),
    ],
    ids=["vit", "vit of another width", "dinov2", "gated", "registers"],
)
def test_transformers_folders_are_brought_to_timm_s_form(
    kind: str, shape: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    made = network(**shape)
    tensors = as_transformers(made, dinov2=kind != "vit")
    tensors |= (
        {"pooler.dense.weight": torch.zeros(48, 48)} if kind == "vit" else {"embeddings.mask_token": torch.zeros(1, 48)}
    )
    if "embeddings.register_tokens" in tensors:
        position = torch.randn(1, 1, 48)
        tensors["embeddings.cls_token"] = tensors["embeddings.cls_token"] - position
        tensors["embeddings.position_embeddings"] = torch.cat([position, tensors["embeddings.position_embeddings"]], 1)
    folder = transformers_folder(tmp_path / "hf", tensors, model_type=kind, **config)
    source = open_source(folder, known=None)
    assert len(source.aside) == 1
    imported = import_model(source, tmp_path / "out", overwrite=False)
    assert imported.difference is None or imported.difference < 1e-6
    assert ("not checked against its source network" in imported.said) == (imported.difference is None)
    model = load_model(str(tmp_path / "out"))
    assert (model.spec.mean, model.spec.tile_px) == ((0.5, 0.4, 0.6), 32)
    images = model.module.normalise(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with torch.inference_mode():
        torch.testing.assert_close(model.module.embed(images), made(images))


def test_dinov2_of_another_size_is_resampled_as_transformers_does(tmp_path: Path) -> None:
    made = network(img_size=56, init_values=0.1)
    tensors = as_transformers(made, dinov2=True)
    folder = transformers_folder(tmp_path / "hf", tensors, model_type="dinov2", image_size=56)
    import_model(open_source(folder, known=None), tmp_path / "out", overwrite=False)
    found = load_file(tmp_path / "out" / "model.safetensors")["pos_embed"]
    grid = made.pos_embed[:, 1:].unflatten(1, (7, 7)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, size=(4, 4), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, torch.cat([made.pos_embed[:, :1], expected], 1))
    assert load_model(str(tmp_path / "out")).spec.tile_px == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"neck.weight": torch.zeros(2)}, r"neck\.weight"),
        (lambda s: {name: value for name, value in s.items() if name != "norm.bias"}, r"norm\.bias"),
        (lambda s: s | {"patch_embed.proj.bias": torch.zeros(7)}, "does not fit the architecture"),
        (lambda s: {"optimizer": {"lr": 1.0}, "epoch": 1}, "is no tensor"),
        (lambda s: s | {"norm.bias": torch.eye(48).to_sparse()}, r"norm\.bias is no tensor"),
        (lambda s: [1, 2], "holds no table of tensors"),
        (lambda s: {"features.0.weight": torch.zeros(3)}, "holds no patch embedding"),
        (lambda s: {f"{who}.{name}": v for name, v in s.items() for who in "ab"}, "holds 2 vision transformers"),
        (lambda s: {f"a.{name}": v for name, v in s.items()} | {"b.weight": torch.zeros(1)}, r"b\.weight is no part"),
    ],
    ids=["one more", "one less", "another shape", "no weights", "sparse", "a list", "a CNN", "two", "beside"],
)
def test_every_tensor_is_accounted_for(change: Any, message: str, tmp_path: Path) -> None:
    made = network()
    folder = hub_folder(tmp_path / "hub", made, change(made.state_dict()))
    with pytest.raises(InputError, match=message):
        import_model(open_source(folder, known="uni"), tmp_path / "out", overwrite=False)
    assert not (tmp_path / "out").exists()


def test_tensors_that_share_memory_are_stored_each(tmp_path: Path) -> None:
    made = network()
    state = made.state_dict()
    for name in ("norm.weight", "norm.bias"):
        state[name] = state["blocks.0.norm1.weight"]
    folder = hub_folder(tmp_path / "hub", made, state)
    bring(folder, tmp_path, "uni")


@pytest.mark.skipif(os.name == "nt", reason="a limit on file sizes is POSIX")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    source = open_source(hub_folder(tmp_path / "hub", network()), known=None)
    out = tmp_path / "made" / "out"
    out.parent.mkdir()
    with disk_full_after(20_000), pytest.raises(InputError, match="cannot be written") as raised:
        import_model(source, out, overwrite=False)
    assert "free disk space" in str(raised.value)
    assert not list(out.parent.iterdir())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"a": Evil()}), b"", b"PK\x03\x04 cut off", b"junk\n"],
    ids=["code", "empty", "cut", "junk"],
)
def test_what_is_no_file_of_tensors_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as a file of tensors alone: .*[a-z]"):
        open_source(Path("model.bin"), known="uni")
    assert not Path("evil").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="nothing says what network"):
        open_source(tmp_path / "a.pth", known=None)
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        open_source(tmp_path / "nowhere", known="uni")
    with pytest.raises(InputError, match="cannot be loaded: its embedding leaves"):
        open_source(tmp_path / "a.pth", known="conch-v1.5")
    torch.save(network().state_dict(), tmp_path / "b.pth")
    with pytest.raises(InputError, match="holds 2 checkpoints"):
        open_source(tmp_path, known="uni")
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(InputError, match="model_type 'swin'"):
        open_source(tmp_path / "a.pth", known=None)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(hub_folder(tmp_path / "hub", network()))
    out = tmp_path / "out"
    bring_it = ["import", folder, "--as", "uni", "--out"]
    assert run_app(app, [*bring_it, str(out), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["name"] == "uni" and not out.exists()
    assert run_app(app, [*bring_it, str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"]["one_minus_cosine"] < 1e-6
    assert run_app(app, [*bring_it, str(out)]) == 2
    assert run_app(app, [*bring_it, str(out), "--overwrite"]) == 0
    other = write_timm_folder(tmp_path / "other", "vit_tiny_patch16_224", **VIT)
    assert run_app(app, [*bring_it, str(other), "--overwrite"]) == 2
    assert "import.json" in capsys.readouterr().err
    assert run_app(app, ["import", folder, "--as", "ctranspath", "--out", str(tmp_path / "new")]) == 5
