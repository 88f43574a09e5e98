import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from atlas_edge.errors import ChecksumError, InputError, UsageError
from atlas_edge.models.load import DEFAULT_MODEL, load_encoder, load_model
from atlas_edge.models.students import EMBEDDED, EmbeddedStudent, find_student
from support import timm_embedding


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_folder_gives_timm_s_own_embedding(tiny_model: Path, tiny_tiles: NDArray[np.uint8]) -> None:
    import timm
    import torch

    encoder = load_encoder(str(tiny_model))
    reference = timm.create_model(f"local-dir:{tiny_model}", pretrained=True, num_classes=0).eval()
    images = (torch.from_numpy(tiny_tiles).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    with torch.inference_mode():
        expected = reference(images).numpy()
    np.testing.assert_allclose(encoder.encode(tiny_tiles), expected, atol=1e-5)
    assert encoder.spec.registers == 1
    assert encoder.spec.patch == 8


def test_cls_and_mean_are_concatenated(tiny_model: Path, tiny_tiles: NDArray[np.uint8]) -> None:
    import torch

    model = load_model(str(tiny_model), pooling="cls+mean")
    with torch.inference_mode():
        tiles = torch.from_numpy(tiny_tiles)
        tokens = model.module.tokens(model.module.normalise(tiles))
        embedding = model.module(tiles)
    assert tokens.shape == (16, 1 + 1 + 16, 64)
    torch.testing.assert_close(embedding, torch.cat([tokens[:, 0], tokens[:, 2:].mean(1)], dim=1))
    assert model.spec.embed_dim == 128


def test_a_folder_with_the_name_of_an_own_model_is_not_read_silently(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_model("atlas2-demo").spec.embed_dim == 192
    assert not caplog.records
    shutil.copytree(tiny_model, "atlas2-demo")
    assert load_model("./atlas2-demo").spec.embed_dim == load_model("local-dir:atlas2-demo").spec.embed_dim == 64
    assert not caplog.records
    assert load_model("atlas2-demo").spec.embed_dim == 192
    assert "write ./atlas2-demo" in caplog.text


def test_registry_student_is_deterministic_and_says_random() -> None:
    import torch

    first, second, other = (load_model("atlas2-s", patch=16, seed=seed) for seed in (0, 0, 1))
    weights = [model.module.backbone.blocks[0].attn.qkv.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.spec.random_weights
    assert (first.spec.patch, first.spec.registers, first.spec.tile_px) == (16, 4, 224)


def test_at_patch_8_a_student_has_the_shape_of_its_published_analogue() -> None:
    model = load_model("atlas2-s", patch=8)
    spec, backbone = model.spec, model.module.backbone
    assert (spec.patch, spec.registers, spec.pooling, spec.embed_dim) == (8, 8, "cls+mean", 768)
    assert spec.mean == (0.7072, 0.5787, 0.7036) and spec.std == (0.2119, 0.2301, 0.1775)
    assert backbone.rope is not None and backbone.pos_embed is None
    assert sum(weight.numel() for weight in backbone.parameters()) == pytest.approx(21.4e6, rel=0.01)
    assert load_model("atlas2-s", patch=8, registers=2, pooling="cls").spec.embed_dim == 384


@pytest.mark.parametrize(("name", "parameters"), [("atlas2-b", 86e6), ("atlas2", 2.0e9)])
def test_larger_shapes_have_the_published_number_of_parameters(name: str, parameters: float) -> None:
    import timm
    import torch

    student = find_student(name)
    with torch.device("meta"):
        network = timm.create_model(student.architecture, num_classes=0, img_size=224, **student.shape())
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(parameters, rel=0.01)
    assert network.patch_embed.patch_size == (student.patch, student.patch)


def test_the_default_is_the_trained_demonstration_and_says_so() -> None:
    model = load_model(DEFAULT_MODEL)
    assert model.spec.name == "atlas2-demo"
    assert not model.spec.random_weights
    assert model.spec.notice is not None and "not for clinical use" in model.spec.notice
    assert model.provenance.sha256 == EMBEDDED["atlas2-demo"].weights_sha256
    card = (EMBEDDED["atlas2-demo"].folder / "README.md").read_text(encoding="utf-8")
    assert "Not Atlas 2-S" in card and "Not for clinical use" in card


def test_timm_reads_the_demonstration(tiny_tiles: NDArray[np.uint8]) -> None:
    import torch

    model = load_model("atlas2-demo")
    assert model.spec.mpp == 0.5
    tiles = np.tile(tiny_tiles[:2], (1, 7, 7, 1))
    with torch.inference_mode():
        found = model.module(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(found, timm_embedding(EMBEDDED["atlas2-demo"].folder, tiles), atol=1e-4)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_an_embedded_student_that_was_changed_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "atlas2-demo"
    shutil.copytree(EMBEDDED["atlas2-demo"].folder, folder)
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    monkeypatch.setattr(EmbeddedStudent, "folder", folder)
    with pytest.raises(ChecksumError, match=rf"{name} has SHA-256 .*expected"):
        load_model("atlas2-demo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "atlas2-s", "patch": 15}, "patch side 15"),
        ({"name": "atlas2-s", "registers": -1}, "-1 register"),
        ({"name": "atlas3"}, "no model is called 'atlas3'"),
    ],
)
def test_unknown_models(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(**arguments)


def test_patch_of_a_checkpoint_cannot_be_changed(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="registry student"):
        load_model(str(tiny_model), patch=16)


def test_truncated_weights(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="truncated"):
        load_model(str(copy))


def test_missing_weights_are_not_looked_for_in_a_pickle(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled checkpoints are never loaded"):
        load_model(str(copy))


def test_weights_of_another_architecture(copy: Path) -> None:
    edit(copy, lambda config: config["model_args"].update(depth=3))
    with pytest.raises(InputError, match="does not fit the architecture"):
        load_model(str(copy))


def test_weights_that_are_not_numbers(copy: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    state["norm.weight"][0] = torch.nan
    save_file(state, copy / "model.safetensors")
    with pytest.raises(InputError, match=r"norm\.weight holds NaN"):
        load_model(str(copy))


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_config_cannot_load_another_file(copy: Path, key: str) -> None:
    edit(copy, lambda config: config["model_args"].update({key: "evil.pth"}))
    with pytest.raises(InputError, match=f"model_args holds '{key}'"):
        load_model(str(copy))


@pytest.mark.parametrize("architecture", ["hf-hub:someone/model", "local-dir:/tmp/x", "vit_imaginary"])
def test_architecture_must_be_timm_s(copy: Path, architecture: str) -> None:
    edit(copy, lambda config: config.update(architecture=architecture))
    with pytest.raises(InputError, match="which timm"):
        load_model(str(copy))


def test_hub_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"copy config\.json and model\.safetensors"):
        load_model("hf-hub:nobody/nothing")


@pytest.mark.parametrize("revision", ["", "@main", "@" + "a" * 40])
def test_the_hub_s_cache_gives_one_commit(
    revision: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as huggingface_hub does, read without the network."""
    commit = "a" * 40
    repository = tmp_path / "models--org--encoder"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = load_model(f"hf-hub:org/encoder{revision}")
    assert (model.spec.name, model.provenance.source, model.provenance.revision) == ("encoder", "hf-hub", commit)


@pytest.mark.parametrize("name", ["nobody", "no one/nothing", "nobody/nothing@nowhere", ""])
def test_what_is_no_hub_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="hf-hub:"):
        load_model(f"hf-hub:{name}")


@pytest.mark.parametrize("shape", [(2, 32, 32, 4), (2, 31, 32, 3), (32, 32, 3), (0, 32, 32, 3)])
def test_wrong_tiles_are_refused(tiny_model: Path, shape: tuple[int, ...]) -> None:
    encoder = load_encoder(str(tiny_model))
    with pytest.raises(InputError, match=r"expected \(B, 32, 32, 3\) uint8"):
        encoder.encode(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(InputError, match="float32"):
        encoder.encode(np.zeros((1, 32, 32, 3), dtype=np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["atlas2-demo", "atlas2-s"])
def test_a_tile_that_no_patches_fill_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--tile-px 230 is no multiple of the patch side"):
        load_model(name, tile_px=230)
