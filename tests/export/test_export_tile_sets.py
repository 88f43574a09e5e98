"""Which tiles of an export calibrate and which judge: never the same, however they are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atlas_edge.errors import AtlasError, InputError, UsageError
from atlas_edge.export.config import ExportConfig
from atlas_edge.export.tile_sets import TileSets, open_tile_sets
from atlas_edge.spec import Precision, Target


def _folder(root: Path, *, tiles: int = 8) -> Path:
    for number in range(tiles):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(str(root)) + number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def _open(**options: Any) -> TileSets:
    return open_tile_sets(
        ExportConfig(**{"model": "tiny", "target": Target.ONNX, "precision": Precision.INT8} | options)
    )


def _ids(sets: TileSets) -> tuple[set[str], set[str]]:
    return {record.id for record in sets.calibration.records}, {record.id for record in sets.evaluation.records}


def test_a_set_without_splits_is_halved_and_opened_once(tmp_path: Path) -> None:
    sets = _open(calib=str(_folder(tmp_path / "set")))
    first, second = _ids(sets)
    assert sets.halved
    assert sets.calibration.source is sets.evaluation.source
    assert sets.fit is not None and {record.id for record in sets.fit.records} == first
    assert len(first) == len(second) == 4 and not first & second
    assert {name[0] for name in first} == {name[0] for name in second} == {"a", "b"}


def test_splits_part_a_set_whatever_its_folder_is_called(tmp_path: Path) -> None:
    root = tmp_path / "site@oslo" / "tiles@1"
    for split in ("train", "test"):
        _folder(root / split)
    for calib in (root, f"{root}@train"):
        sets = _open(calib=str(calib))
        first, second = _ids(sets)
        assert not sets.halved
        assert {name.split("/")[0] for name in first} == {"train"}
        assert {name.split("/")[0] for name in second} == {"test"}


@pytest.mark.parametrize(
    ("calib", "judged", "error", "message"),
    [
        (None, "set", UsageError, "has no splits: calibrating on the tiles that judge would flatter"),
        ("set", "set", InputError, r"8 tiles .* are in both the calibration tiles and the evaluation tiles"),
        ("set", "other/../set", InputError, r"8 tiles .* are in both"),
        ("synthetic:64@train", "synthetic:32@train", InputError, r"1 slides .* are in both"),
    ],
)
def test_tiles_that_calibrate_never_judge(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calib: str | None,
    judged: str,
    error: type[AtlasError],
    message: str,
) -> None:
    _folder(tmp_path / "set")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        _open(calib=calib, eval=judged)
