"""Which tiles calibrate: balance, background, blur, convergence, and the command that shows it."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.console import Console

from atlas_edge.errors import InputError
from atlas_edge.export.calibrate import calibrate
from atlas_edge.export.config import resolve
from atlas_edge.export.steps import Steps
from atlas_edge.export.tile_sets import open_tile_sets
from atlas_edge.quantize.commands.calibration import show_calibration
from atlas_edge.quantize.commands.search import judged_on
from atlas_edge.quantize.options import CalibrationOptions
from atlas_edge.quantize.tiles.choose import choose_calibration
from atlas_edge.quantize.tiles.convergence import FITTED_TILES, Convergence, watch_ranges
from atlas_edge.quantize.tiles.screening import look_at
from atlas_edge.tiles import TileRecord, TileSource, open_tiles
from support import TINY_PX, RunCommand


class ListedTiles(TileSource):
    """Tiles in memory."""

    name = "listed"
    kind = "test"

    def __init__(self, tiles: list[tuple[TileRecord, NDArray[np.uint8]]]) -> None:
        self._tiles = {record.id: (record, pixels) for record, pixels in tiles}

    def records(self) -> Iterator[TileRecord]:
        return (record for record, _ in self._tiles.values())

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        return self._tiles[record.id][1]

    def splits(self) -> frozenset[str]:
        return frozenset()

    def fingerprint(self) -> str:
        return "listed"


def _tissue(number: int, colour: tuple[int, int, int] = (190, 110, 170)) -> NDArray[np.uint8]:
    noise = np.random.default_rng(number).normal(0, 30, (TINY_PX, TINY_PX, 3))
    return np.clip(noise + np.array(colour), 0, 255).astype(np.uint8)


def _blurred(tile: NDArray[np.uint8], radius_px: float) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(tile).filter(ImageFilter.GaussianBlur(radius_px)), dtype=np.uint8)


def test_a_rare_scanner_and_a_rare_class_get_their_share() -> None:
    tiles = []
    for number in range(90):
        scanner = "rare" if number % 15 == 0 else "common"
        label = "tumour" if number % 9 == 0 else "stroma"
        record = TileRecord(id=f"{number:03d}", label=label, scanner=scanner, group=f"slide-{number // 10}")
        tiles.append((record, _tissue(number)))
    choice = choose_calibration(ListedTiles(tiles), limit=20, tile_px=TINY_PX)
    assert choice.fields == ("label", "scanner", "group")
    assert Counter(record.label for record in choice.records) == {"tumour": 10, "stroma": 10}
    # 90 tiles hold two tumour tiles and four of stroma from the rare scanner: all are used.
    assert Counter(record.scanner for record in choice.records)["rare"] == 6
    half = Counter(record.label for record in choice.first(10).records)
    assert half == {"tumour": 5, "stroma": 5}


def test_colours_stand_in_for_columns_that_are_missing() -> None:
    colours = [(190, 110, 170)] * 56 + [(120, 60, 140)] * 8
    tiles = [(TileRecord(id=f"{n:03d}"), _tissue(n, colour)) for n, colour in enumerate(colours)]
    choice = choose_calibration(ListedTiles(tiles), limit=16, tile_px=TINY_PX)
    assert choice.fields == ("colour",)
    dark = [record for record in choice.records if int(record.id) >= 56]
    # A blind sample of 16 would hold 2.
    assert len(dark) >= 4


def test_background_and_blur_are_left_out() -> None:
    glass = np.full((TINY_PX, TINY_PX, 3), 242, dtype=np.uint8)
    tiles = [(TileRecord(id=f"good-{n:02d}"), _tissue(n)) for n in range(24)]
    tiles += [(TileRecord(id=f"glass-{n}"), glass) for n in range(3)]
    tiles += [(TileRecord(id=f"soft-{n}"), _blurred(_tissue(100 + n), 3)) for n in range(4)]
    choice = choose_calibration(ListedTiles(tiles), limit=31, tile_px=TINY_PX)
    assert (choice.candidates, choice.background, choice.blurred) == (31, 3, 4)
    assert {record.id for record in choice.records} == {f"good-{n:02d}" for n in range(24)}
    with pytest.raises(InputError, match="none of 3 tiles"):
        choose_calibration(ListedTiles(tiles[24:27]), limit=8, tile_px=TINY_PX)


def test_too_few_tiles_are_refused_and_few_are_warned_of(tmp_path: Path) -> None:
    tiles = [(TileRecord(id=f"{number}"), _tissue(number)) for number in range(12)]
    with pytest.raises(InputError, match="7 tiles of listed can calibrate, at least 8 are needed"):
        choose_calibration(ListedTiles(tiles[:7]), limit=300, tile_px=TINY_PX)
    assert len(choose_calibration(ListedTiles(tiles[:8]), limit=300, tile_px=TINY_PX).records) == 8
    for number, (_, pixels) in enumerate(tiles + tiles):
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
    config = resolve(model="m", target="onnx", precision="int8", calib=str(tmp_path))
    said = io.StringIO()
    still = Convergence(tiles=12, converged=False, layers=1, movement=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlas_edge.quantize.tiles.convergence.watch_ranges", lambda *_, **__: still)
        calibrate(config, TINY_PX, tmp_path, open_tile_sets(config), Steps(Console(file=said, width=200), 1))
    assert "WARNING 12 calibration tiles are few: give 32 or more" in said.getvalue()


def test_a_choice_does_not_depend_on_the_order() -> None:
    tiles = [(TileRecord(id=f"{n:03d}", label=str(n % 3)), _tissue(n)) for n in range(40)]
    ids = [
        {record.id for record in choose_calibration(ListedTiles(order), limit=12, tile_px=TINY_PX).records}
        for order in (tiles, tiles[::-1])
    ]
    assert ids[0] == ids[1]


def test_scales_converge_and_an_outlier_moves_them(tiny_onnx: Path) -> None:
    tiles = np.stack([_tissue(n % 4) for n in range(192)])
    found = watch_ranges(tiny_onnx, tiles)
    # Four tiles again and again: the second and the third addition move nothing.
    assert (found.tiles, found.converged, found.movement) == (96, True, (0.0, 0.0))
    assert found.enough(fitted=False) == 96
    assert found.enough(fitted=True) == FITTED_TILES
    assert found.layers == 18  # 9 inputs of Linears, the convolution, and both operands of 4 attention products
    tiles[64:96] = 255 * (np.indices((TINY_PX, TINY_PX)).sum(0) % 2)[..., None]
    moved = watch_ranges(tiny_onnx, tiles)
    assert moved.movement[1] > 0.01
    assert moved.tiles == 160
    assert not watch_ranges(tiny_onnx, tiles[:64]).converged
    few = watch_ranges(tiny_onnx, tiles[:32])
    assert not few.converged and "32 tiles are too few to tell" in few.sentence()


def test_command_shows_what_an_export_uses(
    tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    sheet = tmp_path / "sheet.png"
    done = run_command("atlas-quantize", "calibration", tiny_model, tiles, "--contact-sheet", sheet, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["tiles"] == len(shown["ids"]) == 48
    assert shown["disjoint_from"].endswith("@test")
    assert shown["stratified_by"] == ["label", "colour"]
    assert all("train" in name for name in shown["ids"])
    with Image.open(sheet) as image:
        assert image.width > 1000
    pink, blue = look_at(np.full((32, 32, 3), (220, 120, 180), np.uint8)), look_at(np.full((32, 32, 3), 90, np.uint8))
    assert pink.tissue == 1 and blue.tissue == 0


def test_command_shows_the_very_tiles_of_an_export(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(120):
        Image.fromarray(_tissue(number)).save(tmp_path / f"{number:03d}.png")
    still = Convergence(tiles=32, converged=True, layers=1, movement=(0.0,))
    monkeypatch.setattr("atlas_edge.quantize.tiles.convergence.watch_ranges", lambda *_, **__: still)
    monkeypatch.setattr("atlas_edge.quantize.commands.calibration._watch", lambda *_: still)
    config = resolve(
        model=str(tiny_model), target="onnx", precision="int8", calib=str(tmp_path), calib_limit=40, fit_limit=600
    )
    silent = Console(quiet=True)
    sets, _, _ = calibrate(config, TINY_PX, tmp_path, open_tile_sets(config), Steps(silent, 1))
    shown = show_calibration(str(tiny_model), str(tmp_path), CalibrationOptions(limit=40), silent)
    assert len(shown["ids"]) == 40
    assert shown["ids"] == [record.id for record in sets.calibration.records]


def test_tiles_of_a_split_are_judged_by_the_other_split_below_a_folder_with_an_at(
    tiny_model: Path, tiles: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiles, tmp_path / "lab@home" / "tiles")
    assert judged_on(f"{folder}@train", None) == str(folder)
    shown = show_calibration(
        str(tiny_model), f"{folder}@train", CalibrationOptions(limit=8, dry_run=True), Console(quiet=True)
    )
    assert shown["disjoint_from"] == "tiles@test"


def test_command_refuses_tiles_that_judge(tiny_model: Path, tiles: Path, run_command: RunCommand) -> None:
    done = run_command("atlas-quantize", "calibration", tiny_model, f"{tiles}@train", "--eval", f"{tiles}@train")
    assert done.returncode == 5
    assert "in both the calibration tiles and the evaluation tiles" in done.stderr
    assert "fix:" in done.stderr
    done = run_command("atlas-export", tiny_model, "--target", "onnx", "--precision", "fp32", "--calib", tiles / "test",
                       "--eval", tiles / "test", "--dry-run")  # fmt: skip
    assert done.returncode == 5, done.stderr


def test_real_tiles_are_in_focus_and_blur_is_found(shared: Path) -> None:
    source = open_tiles(shared / "data" / "dev_crc5", role="calibration")
    records = list(source.records())[::30]
    sharp = [look_at(source.read(record)).sharpness for record in records]
    soft = [look_at(_blurred(source.read(record), 2)).sharpness for record in records]
    from atlas_edge.quantize.tiles.screening import LEAST_SHARPNESS

    limit = LEAST_SHARPNESS * float(np.median(sharp))
    assert min(sharp) > limit > max(soft)
