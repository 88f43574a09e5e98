import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from atlas_edge.distill.data.augment import Augmentation, stored_view
from atlas_edge.distill.data.cache import FeatureCache, write_cache
from atlas_edge.distill.data.teachers import Teacher, licence_warning, open_teacher
from atlas_edge.distill.data.tileset import open_training_tiles, tile_hash
from atlas_edge.errors import ChecksumError, InputError, UsageError
from atlas_edge.manifest import ModelProvenance

WEAK = Augmentation.named("weak")


def _write(out: Path, teacher: Path, tiles: Path, **options: object) -> FeatureCache:
    training = open_training_tiles([str(tiles)])
    arguments = {"seeds": (0, 1), "augmentation": WEAK, "tile_px": 32, "grid": 4, "shard_views": 10, **options}
    write_cache(out, open_teacher(str(teacher)), training, **arguments)  # type: ignore[arg-type]
    return FeatureCache(out, training)


def test_stored_features_are_the_teachers_answer_to_the_view(
    tiny_model: Path, tile_folder: Path, tmp_path: Path
) -> None:
    cache = _write(tmp_path / "cache", tiny_model, tile_folder)
    training = open_training_tiles([str(tile_folder)])
    views = np.array([3, 24 + 7, 47])
    found = cache.features(views)
    shown = np.stack(
        [stored_view(training.read(v % 24), training.id(v % 24), v // 24, WEAK, tile_px=32) for v in views.tolist()]
    )
    truth = open_teacher(str(tiny_model)).features(shown, grid=4)
    assert found.patches is not None and truth.patches is not None
    assert np.allclose(found.cls, truth.cls, atol=5e-3)
    assert np.allclose(found.patches, truth.patches, atol=5e-3)


def test_an_unfinished_cache_goes_on_and_keeps_whole_shards(
    tiny_model: Path, tile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    _write(out, tiny_model, tile_folder)
    (out / "00003.safetensors").unlink()
    with pytest.raises(InputError, match="1 of 5 shards are missing"):
        FeatureCache(out, open_training_tiles([str(tile_folder)]))
    batches = []
    genuine = Teacher.features

    def counted(self: Teacher, tiles: np.ndarray, *, grid: int | None) -> object:  # type: ignore[type-arg]
        batches.append(len(tiles))
        return genuine(self, tiles, grid=grid)

    monkeypatch.setattr(Teacher, "features", counted)
    _write(out, tiny_model, tile_folder)
    assert sum(batches) == 10


def test_a_cache_of_other_tiles_or_views_is_refused(tiny_model: Path, tile_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    _write(out, tiny_model, tile_folder)
    with pytest.raises(UsageError, match="another teacher"):
        _write(out, tiny_model, tile_folder, seeds=(0, 1, 2))
    with pytest.raises(UsageError, match="other tiles"):
        FeatureCache(out, open_training_tiles(["synthetic:8"]))


def test_a_cache_of_an_earlier_schema_is_refused(tiny_model: Path, tile_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    _write(out, tiny_model, tile_folder)
    index = json.loads((out / "cache.json").read_text())
    (out / "cache.json").write_text(json.dumps(index | {"schema_version": 1}))
    (out / "00003.safetensors").unlink()
    for use in (
        lambda: _write(out, tiny_model, tile_folder),
        lambda: FeatureCache(out, open_training_tiles(["synthetic:8"])),
    ):
        with pytest.raises(InputError, match="schema version 1, expected 2") as refused:
            use()
        assert "compute it again" in str(refused.value.hint)
    assert not (out / "00003.safetensors").exists()


def test_a_tile_whose_pixels_changed_is_refused(tiny_model: Path, tile_folder: Path, tmp_path: Path) -> None:
    tiles = tmp_path / "few"
    shutil.copytree(tile_folder, tiles)
    cache = _write(tmp_path / "cache", tiny_model, tiles)
    tile = open_training_tiles([str(tiles)]).read(0)
    assert cache.features(np.array([0]), np.array([tile_hash(tile)])).cls.shape == (1, 64)
    with pytest.raises(ChecksumError, match="other pixels"):
        cache.features(np.array([0]), np.array([tile_hash(255 - tile)]))


def test_cls_only_caches_hold_no_patch_tokens(tiny_model: Path, tile_folder: Path, tmp_path: Path) -> None:
    cache = _write(tmp_path / "cache", tiny_model, tile_folder, grid=None)
    assert cache.features(np.array([1])).patches is None
    assert set(load_file(tmp_path / "cache" / "00000.safetensors")) == {"cls", "hashes"}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_no_shard_stays_mapped(tiny_model: Path, tile_folder: Path, tmp_path: Path) -> None:
    cache = _write(tmp_path / "cache", tiny_model, tile_folder)
    assert cache.features(np.array([3, 0])).cls.shape == (2, 64)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_damaged_caches_are_told(damage: str, tiny_model: Path, tile_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    _write(out, tiny_model, tile_folder)
    if damage == "missing":
        (out / "cache.json").unlink()
    else:
        shard = out / "00000.safetensors"
        shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(InputError, match=r"cache\.json|is damaged"):
        FeatureCache(out, open_training_tiles([str(tile_folder)]))


@pytest.mark.parametrize(
    ("name", "licence", "warned"),
    [
        ("h0", "cc-by-nc-nd-4.0", True),
        ("x", "CC-BY-ND-4.0", True),
        ("Virchow2", "other", True),
        ("x", None, True),
        ("H-optimus-0", "apache-2.0", False),
        ("x", "mit", False),
        ("x", "ncsa", False),
    ],
)
def test_restrictive_licences_are_warned_about_by_name(name: str, licence: str | None, warned: bool) -> None:
    text = licence_warning(ModelProvenance(name=name, source="checkpoint", licence=licence))
    assert (text is not None) == warned
    assert text is None or name in text


def test_a_cnn_teaches_too(tmp_path: Path, tile_folder: Path) -> None:
    import json

    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "cnn"
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "resnet18",
        "num_classes": 0,
        "pretrained_cfg": {"input_size": [3, 64, 64], "license": "mit"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tile = np.asarray(Image.open(next(tile_folder.rglob("*.png"))).resize((64, 64)))
    found = open_teacher(str(folder)).features(np.stack([tile, tile]), grid=4)
    assert found.cls.shape == (2, 512)
    assert found.patches is not None and found.patches.shape == (2, 16, 512)


def test_random_weights_teach_nothing() -> None:
    with pytest.raises(InputError, match="random weights"):
        open_teacher("atlas2-s")
