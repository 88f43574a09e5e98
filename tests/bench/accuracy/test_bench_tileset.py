from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.plism import Scan
from atlas_edge.bench.accuracy.tileset import TileSet, embed_tiles, pick_tiles
from atlas_edge.encoder import Capabilities
from atlas_edge.errors import InputError
from atlas_edge.spec import EncoderSpec
from atlas_edge.tiles import TileRecord, TileSource


class Listed(TileSource):
    """Records given by hand; the pixels of a tile are its position in the list."""

    name, kind = "listed", "flat folder"

    def __init__(self, records: list[TileRecord], side: int = 4) -> None:
        self._records, self._side = records, side
        self.reads = 0

    def records(self) -> Iterator[TileRecord]:
        return iter(self._records)

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        self.reads += 1
        value = [one.id for one in self._records].index(record.id)
        return np.full((self._side, self._side, 3), value, np.uint8)

    def splits(self) -> frozenset[str]:
        return frozenset()

    def fingerprint(self) -> str:
        return "f"


class Mean:
    """Embeds a tile as its mean, and counts."""

    runtime = "mean"
    capabilities = Capabilities()

    def __init__(self, tile_px: int = 4) -> None:
        self.spec = EncoderSpec(
            name="mean", architecture="none", embed_dim=2, tile_px=tile_px, mean=(0, 0, 0), std=(1, 1, 1), pooling="cls"
        )

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert tiles.shape[1:] == (self.spec.tile_px, self.spec.tile_px, 3)
        means = tiles.reshape(len(tiles), -1).mean(axis=1)
        return np.stack([means, np.ones(len(tiles))], axis=1).astype(np.float32)

    def close(self) -> None:
        pass


def _records(labels: str) -> list[TileRecord]:
    return [TileRecord(id=f"t{index}", label=label) for index, label in enumerate(labels)]


def test_a_limit_is_balanced_over_labels_and_spread_through_the_source() -> None:
    picked = pick_tiles(Listed(_records("a" * 20 + "b" * 4)), limit=8).records
    assert [record.label for record in picked] == ["a"] * 4 + ["b"] * 4
    assert [record.id for record in picked] == ["t0", "t6", "t13", "t19", "t20", "t21", "t22", "t23"]
    rare = pick_tiles(Listed(_records("a" * 20 + "b")), limit=8).records
    assert [record.label for record in rare].count("b") == 1 and len(rare) == 8
    assert len(pick_tiles(Listed(_records("ab")), limit=8).records) == 2
    assert len(pick_tiles(Listed(_records("ab")), limit=None).records) == 2


def test_each_tile_is_decoded_once_for_all_encoders_and_order_is_kept() -> None:
    source = Listed(_records("a" * 70))
    tiles = pick_tiles(source, limit=None)
    counted: list[int] = []
    found = embed_tiles({"one": Mean(), "two": Mean()}, tiles, progress=counted.append)
    assert source.reads == 70
    assert found["one"][:, 0].tolist() == list(range(70)) == found["two"][:, 0].tolist()
    assert sum(counted) == 140


def test_a_shift_comes_before_the_tile_is_fitted() -> None:
    tiles = TileSet(source=Listed(_records("aa"), side=8), records=tuple(_records("aa")), fit="crop")
    seen: list[tuple[int, ...]] = []

    def shift(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen.append(tile.shape)
        return tile + np.uint8(10)

    found = embed_tiles({"small": Mean(4)}, tiles, shift=shift)
    assert seen == [(8, 8, 3)] * 2
    assert found["small"][:, 0].tolist() == [10.0, 11.0]


def test_tiles_of_another_size_are_refused_unless_asked() -> None:
    tiles = pick_tiles(Listed(_records("a"), side=8), limit=None)
    with pytest.raises(InputError, match="--tile-fit"):
        embed_tiles({"small": Mean(4)}, tiles)


def test_a_column_with_a_gap_is_no_column() -> None:
    full = [TileRecord(id="1", label="a", group="s1", center="x", position="p", scanner="S", stain="HE")]
    gap = [*full, TileRecord(id="2", label="b", group="s2")]
    whole, broken = (TileSet(source=Listed(records), records=tuple(records)) for records in (full, gap))
    assert (whole.centers, whole.positions, whole.scans) == (("x",), ("p",), (Scan("S / HE", "S", "HE"),))
    assert (broken.centers, broken.positions) == (None, None)
    assert broken.scans == (Scan("S / HE", "S", "HE"), Scan("s2"))  # a slide is a scan where nothing better is known
    assert broken.group_numbers is not None and broken.group_numbers.tolist() == [0, 1]
    assert TileSet(source=Listed([]), records=()).labels is None


def _places(groups: list[str]) -> TileSet:
    """Two patients' place `0-0` and `0-1` on scanners A and B; groups by patient and scanner."""
    records = [
        TileRecord(id=f"{patient}{scanner}{place}", scanner="AB"[scanner], position=f"0-{place}", group=groups[number])
        for number, (patient, scanner) in enumerate((p, s) for p in range(2) for s in range(2))
        for place in range(2)
    ]
    return TileSet(source=Listed(records), records=tuple(records))


def test_places_of_several_patients_are_told_apart_by_patient_or_refused() -> None:
    patients = _places(["one", "one", "two", "two"])
    assert patients.positions is not None and len(set(patients.positions)) == 4
    assert set(patients.positions[:2]) == {"one / 0-0", "one / 0-1"} == set(patients.positions[2:4])
    # Slides with places of their own, as tiles cut on a grid have: there are no twins.
    assert _places(["one on A", "one on B", "two on A", "two on B"]).positions is None
    with pytest.raises(InputError, match="position 0-0 occurs twice on scan A"):
        _ = _places(["one", "one", "one", "one"]).positions
