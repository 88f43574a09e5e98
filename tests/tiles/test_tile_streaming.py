"""Memory stays flat for any number of tiles: kept, the records of so many would be ten times the limit and more."""

import tracemalloc
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_edge.tiles import TileRecord, open_tiles, select_records
from atlas_edge.tiles.forms.folders import image_names
from atlas_edge.tiles.overlap import in_first_half
from atlas_edge.tiles.synthetic.source import SyntheticTiles

MANY = 200_000
FLAT_BYTES = 2 * 2**20


def peak_bytes(records: Iterator[TileRecord] | Iterator[str]) -> tuple[int, int]:
    last = deque(maxlen=1)  # type: ignore[var-annotated]
    count = 0
    tracemalloc.start()
    for record in records:
        last.append(record)
        count += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return count, peak


def test_many_synthetic_tiles() -> None:
    count, peak = peak_bytes(SyntheticTiles(MANY).records())
    assert count == MANY
    assert peak < FLAT_BYTES


def test_a_large_manifest(tmp_path: Path) -> None:
    rows = MANY // 5
    with (tmp_path / "manifest.csv").open("w") as file:
        file.write("file,shard,label,split,group,sha256\n")
        for index in range(rows):
            file.write(f"t/{index}.png,s-{index // 1000}.zip,a,train,slide-{index // 500},{index:064d}\n")
    count, peak = peak_bytes(open_tiles(tmp_path).records())
    assert count == rows
    assert peak < FLAT_BYTES


def test_drawing_and_parting_hold_few_records() -> None:
    """1,000 slides, of each of which the limit could be drawn; of the halves 12 bytes a tile are kept."""

    def records() -> Iterator[TileRecord]:
        return (TileRecord(id=f"tile-{n:06d}", label="a", group=f"slide-{n // 40}") for n in range(40_000))

    tracemalloc.start()
    assert len(select_records(records(), 100)) == 100
    assert tracemalloc.get_traced_memory()[1] < FLAT_BYTES
    tracemalloc.reset_peak()
    first = in_first_half(records())
    assert tracemalloc.get_traced_memory()[1] < 2 * FLAT_BYTES
    tracemalloc.stop()
    assert sum(map(first, records())) == 20_000


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_a_folder_is_sorted_in_parts(tmp_path: Path, chunk: int) -> None:
    names = [f"{index * 7919 % 101:03d}.png" for index in range(100)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    assert list(image_names(tmp_path, chunk=chunk)) == sorted(names)
