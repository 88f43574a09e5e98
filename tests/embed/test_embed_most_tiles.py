"""Some tiles in place of all: what was left out is in every form of output, and a run goes on to the same bytes."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.output.rows import of_skipped
from atlas_edge.embed.resume.plan import attributes_of, differences, plan_of
from atlas_edge.embed.slide import plan_slide
from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides import TileReader
from embed.conftest import RunHere, lose_tiles
from embed.test_embed import FailsLate, MeanEncoder
from embed.test_embed_tokens import TokenEncoder
from embed.test_embed_watch_faults import watch
from support import disk_full_after

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")

ALL = EmbedConfig(tissue=False, batch=7, overview=False)
SOME = replace(ALL, most_tiles=100)


def read_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


def test_what_is_embedded_is_what_all_tiles_would_have_been(scan: Path, tmp_path: Path) -> None:
    result = embed_slide(scan, MeanEncoder(), tmp_path / "some.h5", SOME)
    embed_slide(scan, MeanEncoder(), tmp_path / "all.h5", ALL)
    some, whole = read_hdf5(tmp_path / "some.h5"), read_hdf5(tmp_path / "all.h5")
    assert (result.tiles, result.skipped_tiles, len(some["features"])) == (100, 500, 100)
    row_of = {tuple(corner): row for row, corner in enumerate(whole["coords"].tolist())}
    rows = [row_of[tuple(corner)] for corner in some["coords"].tolist()]
    assert np.array_equal(some["features"], whole["features"][rows]) and rows == sorted(rows)
    assert np.array_equal(some["focus"], whole["focus"][rows])
    assert {*map(tuple, some["coords"].tolist()), *map(tuple, some["skipped_coords"].tolist())} == row_of.keys()
    stands_for = np.bincount(some["skipped_row"], minlength=100)
    assert len(some["skipped_row"]) == 500 and (stands_for == 5).all()
    assert "skipped_coords" not in whole and "skipped_row" not in whole
    about = attributes_of(tmp_path / "some.h5")
    assert about is not None and about["most_tiles"] == 100 and about["skipped_tiles"] == 500
    assert np.allclose(some["slide_features"], some["features"].mean(axis=0))


@pytest.mark.parametrize("form", ["h5ad", "zarr", "spatialdata", "parquet", "pt"])
def test_every_form_says_what_was_left_out(scan: Path, tmp_path: Path, form: str) -> None:
    if form in ("zarr", "spatialdata"):
        pytest.importorskip("zarr")
    if form in ("parquet", "spatialdata"):
        pytest.importorskip("pyarrow")
    if form == "pt":
        pytest.importorskip("torch")
    out = tmp_path / f"some.{form}"
    embed_slide(scan, MeanEncoder(), out, SOME)
    embed_slide(scan, MeanEncoder(), tmp_path / "some.h5", SOME)
    expected = read_hdf5(tmp_path / "some.h5")
    found = _skipped_of(out)
    for name in ("skipped_coords", "skipped_row"):
        assert np.array_equal(np.asarray(found[name]), expected[name]), name
    about = attributes_of(out)
    assert about is not None and str(about["most_tiles"]) == "100" and str(about["skipped_tiles"]) == "500"
    assert not differences(about, plan_of(MeanEncoder.spec, SOME, ""))


def _skipped_of(out: Path) -> dict[str, Any]:
    if out.suffix == ".h5ad":
        with h5py.File(out) as file:
            return {name: file["uns"][name][:] for name in ("skipped_coords", "skipped_row")}
    if out.suffix == ".zarr":
        import zarr

        group = zarr.open_group(out, mode="r")
        return {name: group[name][:] for name in ("skipped_coords", "skipped_row")}
    if out.suffix == ".pt":
        with zipfile.ZipFile(out) as file:
            root = file.namelist()[0].partition("/")[0]
            names = ("skipped_coords", "skipped_row")
            return {name: np.load(io.BytesIO(file.read(f"{root}/{name}.npy"))) for name in names}
    about = attributes_of(out)
    assert about is not None
    return {
        name: json.loads(v) if isinstance(v := about[name], str) else v for name in ("skipped_coords", "skipped_row")
    }


def test_a_killed_run_goes_on_to_the_same_bytes(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
    embed_slide(scan, MeanEncoder(), tmp_path / "whole.h5", SOME)
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, FailsLate(8), tmp_path / "resumed.h5", SOME)
    result = embed_slide(scan, MeanEncoder(), tmp_path / "resumed.h5", SOME)
    assert 0 < result.resumed_tiles < 100
    whole, resumed = read_hdf5(tmp_path / "whole.h5"), read_hdf5(tmp_path / "resumed.h5")
    assert whole.keys() == resumed.keys()
    assert all(whole[name].tobytes() == resumed[name].tobytes() for name in whole)


def test_rows_of_another_number_are_not_gone_on_with(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, FailsLate(8), tmp_path / "out.h5", SOME)
    result = embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", replace(SOME, most_tiles=99))
    assert (result.resumed_tiles, result.tiles) == (0, 99)


def test_a_full_disk_costs_nothing_that_was_done(scan: Path, tmp_path: Path) -> None:
    embed_slide(scan, MeanEncoder(), tmp_path / "whole.h5", SOME)
    with pytest.raises((InputError, OSError)), disk_full_after(100 * 48 * 4 - 8):
        embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", SOME)
    assert not (tmp_path / "out.h5").exists()
    embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", SOME)
    whole, found = read_hdf5(tmp_path / "whole.h5"), read_hdf5(tmp_path / "out.h5")
    assert all(whole[name].tobytes() == found[name].tobytes() for name in whole)


def test_where_an_unreadable_tile_stood_for_others_the_nearest_one_does(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = TileReader.read
    embed_slide(scan, MeanEncoder(), tmp_path / "whole.h5", SOME)
    whole = read_hdf5(tmp_path / "whole.h5")
    lost = whole["coords"][40]

    def read(self: TileReader, coords: NDArray[np.int64]) -> object:
        tiles = genuine(self, coords)
        gone = np.flatnonzero((coords == lost).all(axis=1)).tolist()
        tiles.unreadable.update(dict.fromkeys(gone, "gone"))
        return tiles

    monkeypatch.setattr(TileReader, "read", read)
    result = embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", replace(SOME, geojson=True, max_unreadable=0.05))
    found = read_hdf5(tmp_path / "out.h5")
    assert (result.tiles, result.skipped_tiles, len(result.unreadable)) == (99, 500, 1)
    assert found["unreadable_coords"].tolist() == [lost.tolist()]
    before, after = whole["coords"][whole["skipped_row"]], found["coords"][found["skipped_row"]]
    orphans = (before == lost).all(axis=1)
    assert orphans.sum() == 5 and np.array_equal(before[~orphans], after[~orphans])
    away = ((found["coords"] - lost) ** 2).sum(axis=1)
    assert (found["skipped_row"][orphans] == away.argmin()).all()
    tiles = [
        feature["properties"]
        for feature in json.loads((tmp_path / "out.geojson").read_text())["features"]
        if feature["properties"].get("classification", {}).get("name") == "Not embedded"
    ]
    assert [tile["measurements"]["stands_in_row"] for tile in tiles] == found["skipped_row"].tolist()


def test_where_nothing_was_readable_no_row_stands_for_anything(scan: Path) -> None:
    from contextlib import closing

    from atlas_edge.slides import open_slide, plan_grid
    from atlas_edge.slides.spread import spread_evenly

    with closing(open_slide(scan)) as slide:
        grid = spread_evenly(plan_grid(slide, None, tile_px=32, mpp=0.5), 3)
    assert set(of_skipped(np.zeros(3, bool), grid)["skipped_row"].tolist()) == {-1}


def test_a_fault_of_the_share_leaves_no_trace(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_slide(scan, MeanEncoder(), tmp_path / "whole.h5", SOME)
    lose_tiles(monkeypatch, 3)
    embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", SOME)
    whole, found = read_hdf5(tmp_path / "whole.h5"), read_hdf5(tmp_path / "out.h5")
    assert all(whole[name].tobytes() == found[name].tobytes() for name in whole)


def test_tokens_are_of_the_same_tiles(scan: Path, tmp_path: Path) -> None:
    embed_slide(scan, TokenEncoder(), tmp_path / "out.h5", replace(SOME, tokens=True))
    found = read_hdf5(tmp_path / "out.h5")
    assert found["tokens"].shape == (100, 16, 3)
    assert np.array_equal(found["tokens"][..., 1:], found["features"].reshape(-1, 16, 3)[..., 1:].astype(np.float16))


def test_a_number_that_no_slide_reaches_changes_nothing_but_the_plan(scan: Path, tmp_path: Path) -> None:
    embed_slide(scan, MeanEncoder(), tmp_path / "all.h5", ALL)
    many = embed_slide(scan, MeanEncoder(), tmp_path / "many.h5", replace(ALL, most_tiles=10**6))
    one = embed_slide(scan, MeanEncoder(), tmp_path / "one.h5", replace(ALL, most_tiles=1))
    assert (many.tiles, many.skipped_tiles, one.tiles, one.skipped_tiles) == (600, 0, 1, 599)
    whole, found = read_hdf5(tmp_path / "all.h5"), read_hdf5(tmp_path / "many.h5")
    assert whole.keys() == found.keys() and all(whole[name].tobytes() == found[name].tobytes() for name in whole)
    assert set(read_hdf5(tmp_path / "one.h5")["skipped_row"].tolist()) == {0}


def test_the_plan_says_it(scan: Path, tmp_path: Path) -> None:
    plan = plan_slide(scan, MeanEncoder.spec, SOME)
    assert (plan.tiles, plan.skipped_tiles) == (100, 500)
    embed_slide(scan, MeanEncoder(), tmp_path / "some.h5", SOME)
    assert (tmp_path / "some.h5").stat().st_size <= plan.size_bytes
    said = attributes_of(tmp_path / "some.h5")
    assert said is not None
    assert differences(said, plan_of(MeanEncoder.spec, ALL, "")) == ["most_tiles 100, now 0"]
    # Of a version that did not know it: all were embedded.
    del said["most_tiles"]
    assert not differences(said, plan_of(MeanEncoder.spec, ALL, ""))
    assert differences(said, plan_of(MeanEncoder.spec, SOME, "")) == ["most_tiles 0, now 100"]


@pytest.mark.parametrize("absurd", [0, -3])
def test_no_tiles_at_all_are_refused(absurd: int) -> None:
    with pytest.raises(UsageError, match=r"most.tiles"):
        EmbedConfig(most_tiles=absurd)


def test_on_the_command_line(scan: Path, mean_bundle: Path, tmp_path: Path, run_here: RunHere) -> None:
    out = tmp_path / "o.h5"
    arguments = [scan, "--bundle", mean_bundle, "--out", out, "--no-tissue"]
    for absurd in ("0", "-1", "nan"):
        refused = run_here(*arguments, "--most-tiles", absurd)
        assert refused.returncode == 2 and "most-tiles" in refused.stderr.lower(), refused.stderr
    planned = run_here(*arguments, "--most-tiles", "50", "--dry-run", "--json")
    assert json.loads(planned.stdout)["plans"][0]["skipped_tiles"] == 550
    assert "550 with tissue left out as --most-tiles says" in " ".join(planned.stderr.split())
    done = run_here(*arguments, "--most-tiles", "50", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["slides"][0]["skipped_tiles"] == 550
    other = run_here(*arguments)
    assert other.returncode == 2 and "most_tiles 50, now 0" in " ".join(other.stderr.split()), other.stderr
    assert len(read_hdf5(out)["features"]) == 50 and out.with_suffix(".overview.jpg").is_file()


def test_a_watcher_embeds_as_many(drop: Path) -> None:
    done = [line for line in watch(drop, SOME) if line["event"] == "done"]
    assert [(line["tiles"], line["skipped_tiles"]) for line in done] == [(100, 500)] * 2
    # The watcher's own journal says it, too.
    with pytest.raises(UsageError, match="most_tiles 100, now 0"):
        watch(drop, ALL)
    assert len(read_hdf5(drop.parent / "out" / "a.h5")["features"]) == 100


def test_clams_training_and_tridents_readers_see_whole_rows(scan: Path, tmp_path: Path) -> None:
    embed_slide(scan, MeanEncoder(), tmp_path / "some.h5", SOME)
    with h5py.File(tmp_path / "some.h5") as file:
        # CLAM's Whole_Slide_Bag_FP and training; TRIDENT's read_coords.
        assert len(file["coords"]) == len(file["features"]) == 100
        assert {"patch_size", "patch_level", "level0_magnification", "target_magnification"} <= set(
            file["coords"].attrs
        )
