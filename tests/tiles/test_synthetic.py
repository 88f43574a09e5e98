import itertools

import numpy as np
import pytest

from atlas_edge.errors import UsageError
from atlas_edge.tiles import open_tiles
from atlas_edge.tiles.synthetic.source import SyntheticTiles
from atlas_edge.tiles.synthetic.stain import SIMULATED_SCANNERS, SIMULATED_STAINS
from atlas_edge.tiles.synthetic.tissue import CLASSES


def test_is_called_synthetic_everywhere() -> None:
    source = open_tiles("synthetic")
    assert source.synthetic
    assert source.name.startswith("synthetic")
    assert source.kind == "synthetic"
    record = next(source.records())
    assert record.id.startswith("synthetic")
    assert str(record.group).startswith("synthetic")
    assert len(source) == 512


def test_a_tile_depends_on_seed_and_index_only() -> None:
    few, many, other = SyntheticTiles(8), SyntheticTiles(99), SyntheticTiles(8, seed=1)
    records = list(few.records())
    forwards = [few.read(record) for record in records]
    assert [record.id for record in itertools.islice(many.records(), 8)] == [record.id for record in records]
    for record, tile in reversed(list(zip(records, forwards, strict=True))):
        assert np.array_equal(many.read(record), tile)
    assert not np.array_equal(other.read(next(other.records())), forwards[0])
    assert forwards[0].shape == (224, 224, 3)
    assert forwards[0].dtype == np.uint8


def test_slides_are_nested_and_both_splits_see_everything() -> None:
    source = SyntheticTiles(384)
    records = list(source.records())
    train, test = ([r for r in records if r.split == split] for split in ("train", "test"))
    assert not {r.group for r in train} & {r.group for r in test}
    for part in (train, test):
        assert {(r.scanner, r.stain) for r in part} == {
            (a.name, b.name) for a in SIMULATED_SCANNERS for b in SIMULATED_STAINS
        }
        assert {r.label for r in part} == set(CLASSES)
    for group in {r.group for r in records}:
        members = [r for r in records if r.group == group]
        assert len(members) == 16
        assert len({(r.scanner, r.stain, r.split) for r in members}) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 33, 64])
def test_counts(count: int) -> None:
    source = SyntheticTiles(count)
    assert len(list(source.records())) == len(source) == count
    for split in source.splits():
        part = open_tiles(f"synthetic:{count}@{split}")
        assert len(list(part.records())) == len(part) > 0


def test_classes_look_different_and_like_haematoxylin_and_eosin() -> None:
    source = SyntheticTiles(96)
    means: dict[str, list[float]] = {}
    for record in source.records():
        tile = source.read(record).astype(float)
        means.setdefault(str(record.label), []).append(float(tile.mean()))
        red, green, blue = tile.reshape(-1, 3).mean(axis=0)
        # Pink to violet: green is what both stains absorb most.
        assert green <= min(red, blue) + 6, record
    brightness = {label: np.mean(values) for label, values in means.items()}
    assert brightness["adipose"] > brightness["stroma"] > brightness["lymphoid"]


@pytest.mark.parametrize("spec", ["synthetic:0", "synthetic:", "synthetic:ten", "synthetic:5:-1", "synthetic:5@val"])
def test_refuses_nonsense(spec: str) -> None:
    with pytest.raises(UsageError):
        open_tiles(spec)
