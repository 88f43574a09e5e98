"""Hashes that are computed once: never of a file that anything has touched since."""

import json
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_edge.bundle import open_bundle, sha256_file, verify_bundle
from atlas_edge.errors import ChecksumError
from atlas_edge.system import remembered
from atlas_edge.system.heap import give_back_mapped
from atlas_edge.system.remembered import remembered_sha256

LONG_AGO_S = 1e9


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Files that were read in order to be hashed; all count as large, and their clocks as settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "SMALLEST_BYTES", 1)
    monkeypatch.setattr(remembered, "_SETTLED_NS", -1)
    yield []


def hashed(path: Path, read: list[Path]) -> str:
    def compute(file: Path) -> str:
        read.append(file)
        return sha256_file(file)

    return remembered_sha256(path, compute)


def test_a_file_is_read_once_until_anything_touches_it(tmp_path: Path, read: list[Path]) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    assert hashed(file, read) == hashed(file, read) == sha256_file(file)
    assert len(read) == 1
    # The same size, and its time of writing set back: the time of the change is not.
    before = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashed(file, read) == sha256_file(file)
    assert len(read) == 2
    (tmp_path / "other").write_bytes(b"weights")
    (tmp_path / "other").replace(file)
    assert hashed(file, read) == sha256_file(file)
    assert len(read) == 3


def test_what_may_still_be_written_is_not_remembered(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    monkeypatch.setattr(remembered, "_SETTLED_NS", 2 * 10**9)
    hashed(file, read)
    monkeypatch.setattr(remembered, "_SETTLED_NS", -1)

    def compute(path: Path) -> str:
        found = sha256_file(path)
        path.write_bytes(b"another")
        return found

    remembered_sha256(file, compute)
    assert hashed(file, read) == sha256_file(file)
    assert len(read) == 2


@pytest.mark.parametrize("held", [b"", b"[]", b"{}", b'{"stamp": 1, "sha256": 2}', b"\xff", b"[" * 10**5])
def test_a_damaged_memory_is_none(held: bytes, tmp_path: Path, read: list[Path]) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    hashed(file, read)
    (place,) = (tmp_path / "cache" / "atlas-edge" / "hashes").iterdir()
    assert json.loads(place.read_bytes())["sha256"] == sha256_file(file)
    place.write_bytes(held)
    assert hashed(file, read) == sha256_file(file)
    assert len(read) == 2


def test_without_a_place_to_remember_files_are_read_each_time(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert hashed(tmp_path / "file", read) == hashed(tmp_path / "file", read)
    assert len(read) == 2


def test_a_bundle_that_was_changed_is_refused_and_verify_reads_all(
    bundle: Path, read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    mine = tmp_path / "bundle"
    shutil.copytree(bundle, mine)
    open_bundle(mine).close()
    with monkeypatch.context() as patch:
        patch.setattr("atlas_edge.bundle.sha256_file", lambda path: pytest.fail(f"{path} was read"))
        open_bundle(mine).close()
        for full in (lambda: verify_bundle(mine), lambda: open_bundle(mine, rehash=True)):
            with pytest.raises(pytest.fail.Exception, match="was read"):
                full()
    weights = mine / "model.bin"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ChecksumError, match=r"model\.bin has SHA-256"):
        open_bundle(mine)


def test_mapped_pages_leave_and_come_back(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("Linux alone says what is mapped")
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(range(256)) * 4096)

    def resident_kb() -> int:
        text = Path("/proc/self/smaps").read_text()
        return int(text.partition(str(file))[2].partition("Rss:")[2].split()[0])

    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert resident_kb() >= 1024
        give_back_mapped(tmp_path)
        assert resident_kb() == 0
        assert mapped[255] == 255
