"""What Windows does otherwise, done to this process.

Open files cannot be renamed, replaced or deleted, read-only handles cannot be synced, and there is no fcntl.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.embed import EmbedConfig, embed_slide
from embed.conftest import make_scan
from embed.test_embed import FailsLate, MeanEncoder, contents
from embed.test_embed_watch_faults import names, watch

fcntl = pytest.importorskip("fcntl", reason="this is Windows")
pytest.importorskip("openslide")
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux only")


def open_files() -> Iterator[Path]:
    for handle in Path("/proc/self/fd").iterdir():
        try:
            yield handle.readlink()
        except OSError:
            continue


@pytest.fixture
def like_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses_open(name: str, operands: int) -> None:
        genuine: Callable[..., Any] = getattr(os, name)

        def method(*arguments: Any, **options: Any) -> Any:
            touched = {Path(os.path.realpath(os.fsdecode(path))) for path in arguments[:operands]}
            for path in open_files():
                if touched & {path, *path.parents}:
                    raise PermissionError(errno.EACCES, "used by another process", str(path))
            return genuine(*arguments, **options)

        monkeypatch.setattr(os, name, method)

    def fsync(descriptor: int, genuine: Callable[[int], None] = os.fsync) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        genuine(descriptor)

    for name, operands in (("rename", 2), ("replace", 2), ("unlink", 1), ("remove", 1)):
        refuses_open(name, operands)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setitem(sys.modules, "fcntl", None)


@pytest.mark.parametrize("form", ["h5", "parquet", "zarr"])
def test_a_slide_is_embedded_resumed_and_replaced(
    scan: Path, tmp_path: Path, like_windows: None, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    pytest.importorskip({"h5": "h5py", "parquet": "pyarrow", "zarr": "zarr"}[form])
    monkeypatch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
    out, config = tmp_path / f"out.{form}", EmbedConfig(batch=32)
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, FailsLate(3), out, config)
    result = embed_slide(scan, MeanEncoder(), out, config)
    assert result.resumed_tiles == 32 * 3
    assert embed_slide(scan, MeanEncoder(), out, config).tiles == result.tiles
    assert not list(tmp_path.glob(".*")), "what cannot be deleted while it is open is left behind"
    if form == "h5":
        embed_slide(scan, MeanEncoder(), tmp_path / "whole.h5", config)
        assert [part.tobytes() for part in contents(out)] == [
            part.tobytes() for part in contents(tmp_path / "whole.h5")
        ]


def test_a_folder_is_watched(tmp_path: Path, like_windows: None) -> None:
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("ab"):
        make_scan(tmp_path / "in" / f"{name}.tif", seed)
    (tmp_path / "in" / "zero.svs").touch()
    said = watch(tmp_path / "in")
    assert names(said, "done") == ["a.tif", "b.tif"]
    assert (tmp_path / "out" / "quarantine" / "zero.svs.json").exists()
    assert names(watch(tmp_path / "in"), "begin") == []
