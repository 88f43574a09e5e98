"""Pieces of a file that lie together are read by one request."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.errors import InputError
from atlas_edge.slides import open_slide
from atlas_edge.slides.readers.byte_runs import Piece, byte_runs

tifffile = pytest.importorskip("tifffile")
pytestmark = pytest.mark.skipif(not hasattr(os, "pread"), reason="reads are counted where this system has pread")

_KIB, _MIB = 1 << 10, 1 << 20


def _indices(*places: tuple[int, int]) -> list[list[int]]:
    pieces = [Piece(offset, length, index) for index, (offset, length) in enumerate(places)]
    return [[piece.key for piece in run] for run in byte_runs(pieces)]


def test_neighbours_in_the_file_are_one_run_and_others_are_not() -> None:
    assert _indices((300, 100), (100, 100), (200, 100)) == [[1, 2, 0]]
    assert _indices((0, 100), (100 + 64 * _KIB, 100), (201 + 128 * _KIB, 100)) == [[0, 1], [2]]
    assert _indices((0, 3 * _MIB), (3 * _MIB, _MIB), (4 * _MIB, 1)) == [[0, 1], [2]]
    # One inside another: the run goes as far as the longer one.
    assert _indices((0, 200 * _KIB), (10, 20), (200 * _KIB, 5)) == [[0, 1, 2]]


def test_what_no_file_can_hold_is_in_no_run() -> None:
    assert _indices((-1, 5), (0, 0), (0, 5 * _MIB), (10, -3), (7, 5)) == [[4]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was asked of the file: bytes, place."""
    found: list[tuple[int, int]] = []
    genuine = os.pread

    def pread(file: int, length: int, offset: int, /) -> bytes:
        found.append((length, offset))
        return genuine(file, length, offset)

    monkeypatch.setattr("os.pread", pread)
    return found


Write = Callable[..., tuple[Path, np.ndarray]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(**options: object) -> tuple[Path, np.ndarray]:
        pixels = np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8)
        path = tmp_path / "scan.ome.tif"
        tifffile.imwrite(
            path, pixels, tile=(32, 32), photometric="rgb",
            metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, **options,
        )  # fmt: skip
        return path, pixels

    return written


def test_a_region_takes_a_request_for_each_of_its_runs(write: Write, asked: list[tuple[int, int]]) -> None:
    path, pixels = write(compression="zlib")
    with closing(open_slide(path)) as slide:
        asked.clear()
        region = slide.read(0, 40, 70, 400, 60)
        assert np.array_equal(region, pixels[70:130, 40:440])
        # 13 tiles in each of 3 rows; what lies between the rows is less than another request costs.
        assert len(asked) == 1
        assert np.array_equal(slide.read(0, 40, 70, 400, 60), region)
        assert len(asked) == 1, "all of it is kept"
        assert np.array_equal(slide.read(0, 40, 140, 400, 40), pixels[140:180, 40:440])
        assert len(asked) == 2, "one row is new"


def test_a_file_that_ends_early_loses_no_more_than_what_is_behind_its_end(write: Write) -> None:
    path, pixels = write(compression=None)
    with closing(open_slide(path)) as slide:
        whole = slide.read(0, 0, 0, 512, 32)
        with tifffile.TiffFile(path) as whole_file:
            place = whole_file.pages[0].dataoffsets[16 * 3 + 5]
        os.truncate(path, place)
        assert np.array_equal(slide.read(0, 0, 0, 512, 32), whole)
        assert np.array_equal(slide.read_alone(0, 0, 96, 160, 32), pixels[96:128, :160])
        with pytest.raises(InputError, match="ends before it"):
            slide.read(0, 0, 96, 512, 32)


def test_a_fault_of_the_share_is_told(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pixels = write(compression=None)

    def pread(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with closing(open_slide(path)) as slide:
        with monkeypatch.context() as away:
            away.setattr("os.pread", pread)
            with pytest.raises(InputError, match="Input/output error"):
                slide.read(0, 0, 0, 512, 32)
            # By a handle of its own, as when the share is back.
            assert np.array_equal(slide.read_alone(0, 0, 0, 32, 32), pixels[:32, :32])
        assert np.array_equal(slide.read(0, 0, 0, 512, 32), pixels[:32])
