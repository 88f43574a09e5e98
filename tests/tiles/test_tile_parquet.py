"""Parquet cells are bounded before they are unpacked, and columns of other kinds are refused by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.errors import InputError
from atlas_edge.tiles import open_tiles

pyarrow = pytest.importorskip("pyarrow")

MIB = 2**20
_POOLS: list[Any] = []  # buffers point to theirs for as long as they live


def _write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@contextmanager
def _counting() -> Iterator[Any]:
    """What parquet takes inside of it."""
    before = pyarrow.default_memory_pool()
    pool = pyarrow.proxy_memory_pool(before)
    _POOLS.append(pool)
    pyarrow.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pyarrow.set_memory_pool(before)


def test_one_image_is_unpacked_at_a_time(tmp_path: Path) -> None:
    """Many equal cells are stored once; unpacked side by side these would take 256 MiB."""
    path = _write(tmp_path / "bomb.parquet", {"image": [bytes(16 * MIB)] * 16})
    with _counting() as pool:
        source = open_tiles(path)
        *_, last = source.records()
        with pytest.raises(InputError, match="cannot be decoded"):
            source.read(last)
        source.close()
        assert 0 < pool.max_memory() < 100 * MIB


def test_a_column_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    cells = [bytes([value]) * (20 * MIB) for value in range(16)]
    path = _write(tmp_path / "bomb.parquet", {"image": cells}, compression="zstd")
    with _counting() as pool:
        source = open_tiles(path)
        with pytest.raises(InputError, match=r"'image' of [\d,]+ bytes that unpack to 335,"):
            source.read(next(source.records()))
        assert pool.max_memory() < MIB


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"mpp": ["half", "0.5"]}, "has mpp 'half', expected µm per pixel"),
        ({"mpp": [-0.5, 0.5]}, r"has mpp -0\.5, expected"),
        ({"mpp": [float("nan"), 0.5]}, "has mpp nan, expected"),
        ({"label": [["a"], ["b"]]}, "has 'label' of list<.*, expected text or numbers"),
        ({"label": [b"a", b"b"]}, "has 'label' of binary, expected text or numbers"),
        ({"slide_id": ["x" * 5000] * 2}, "a text of 5,000 bytes in 'slide_id', expected at most 4,096"),
        ({"image": ["a.png", "b.png"]}, "has 'image' of string, expected bytes"),
        ({"image": [{"path": "a.png"}] * 2}, "has 'image' of struct<.*, expected bytes"),
        ({"image": [None, None]}, "has 'image' of null, expected bytes"),
        ({"image": pyarrow.array([None] * 2, pyarrow.binary())}, "holds no image bytes"),
        ({"image": [{"bytes": None}, {"bytes": b"x"}]}, "holds no image bytes"),
    ],
)
def test_a_bad_column_is_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = _write(tmp_path / "set.parquet", {"image": [b"x", b"y"]} | columns)
    source = open_tiles(path)
    with pytest.raises(InputError, match=message):
        source.read(next(source.records()))


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "set.parquet", {"image": pyarrow.array([None] * 100_000, pyarrow.binary())})
    with pytest.raises(InputError, match=r"says 100,000 tiles and has [\d,]+ bytes"):
        next(open_tiles(path).records())


def test_columns_of_other_kinds_are_read(tmp_path: Path) -> None:
    categories = pyarrow.array(["tumour", "stroma"]).dictionary_encode()
    columns = {"label": categories, "slide_id": [7, 8], "mpp": ["0.5", None], "stain": pyarrow.nulls(2)}
    first, second = open_tiles(_write(tmp_path / "set.parquet", {"image": [b"x", b"y"]} | columns)).records()
    assert (first.label, first.group, first.mpp, first.stain) == ("tumour", "7", 0.5, None)
    assert (second.label, second.group, second.mpp) == ("stroma", "8", None)
