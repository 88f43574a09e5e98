"""WebDataset tars as tile sets: ours with an index, other people's without."""

import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.tiles import open_tiles
from atlas_edge.tiles.forms import webdataset
from atlas_edge.tiles.forms.webdataset import ABOUT, tar_shard


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir()
    for shard, slide in enumerate(("a", "b")):
        samples = [(f"k{n}", picture(40 * shard + n), {"slide": slide, "mpp": 0.5 + n, "x": n}) for n in range(3)]
        tar, index = tar_shard(samples)
        (folder / f"{shard}.tar").write_bytes(tar)
        (folder / f"{shard}.npz").write_bytes(index)
    return folder


def test_tiles_are_read_at_any_place(ours: Path) -> None:
    source = open_tiles(ours)
    listing = source.listing()
    assert source.kind == "webdataset" and list(source.records()) == list(listing) and len(listing) == 6
    assert [(record.id, record.group, record.mpp) for record in (listing[0], listing[5])] == [
        ("0/k0", "a", 0.5),
        ("1/k2", "b", 2.5),
    ]
    for number in (5, 0, 3):
        assert (source.read(listing[number]) == 40 * (number // 3) + number % 3).all()
    assert len({source.place(record) for record in listing}) == 6


def test_an_index_of_another_shard_or_a_damaged_one_is_not_believed(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(open_tiles(ours).records())
    scanned: list[str] = []
    genuine = webdataset._scanned

    def watched(file: io.BufferedReader, name: str) -> object:
        scanned.append(name)
        return genuine(file, name)

    monkeypatch.setattr(webdataset, "_scanned", watched)
    assert list(open_tiles(ours).records()) == expected and scanned == []
    index = ours / "1.npz"
    whole = index.read_bytes()
    (ours / "0.npz").unlink()
    with np.load(io.BytesIO(whole)) as file:
        arrays = dict(file)
    far = io.BytesIO()
    np.savez(far, **(arrays | {"offsets": arrays["offsets"] + 10**9}))
    other = tar_shard([("k0", picture(1), {})])[1]
    for bad in (whole[:200], b"", other, far.getvalue()):
        scanned.clear()
        index.write_bytes(bad)
        assert list(open_tiles(ours).records()) == expected
        assert len(scanned) == 2


def test_other_people_s_tars_are_tile_sets(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for name, data in (
            ("x/0001.png", picture(7)), ("x/0001.json", json.dumps({"slide": "s", "mpp": "fine"}).encode()),
            ("x/0002.png", picture(9)), ("x/0002.json", b"[1"), ("x/0002.cls", b"3"), ("README", b"hello"),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = open_tiles(tmp_path)
    first, second = source.records()
    assert (first.id, first.group, first.mpp) == ("shard-000/x/0001", "s", None)
    assert (second.id, second.group) == ("shard-000/x/0002", None)
    assert (source.read(second) == 9).all()


def test_an_archive_beside_images_is_no_tile_set(ours: Path) -> None:
    (ours / "one.png").write_bytes(picture(3))
    assert open_tiles(ours).kind == "flat folder"


def test_no_damage_of_a_tar_is_a_bug(ours: Path) -> None:
    tar, generator = ours / "1.tar", np.random.default_rng(0)
    (ours / "1.npz").unlink()
    whole = np.frombuffer(tar.read_bytes(), dtype=np.uint8)
    for _ in range(300):
        damaged = whole.copy()
        # Headers and what is between them; the padding at the end tells little.
        places = generator.integers(0, len(whole) // 2, 4)
        damaged[places] = generator.integers(0, 256, 4)
        tar.write_bytes(damaged.tobytes())
        with suppress(InputError):
            source = open_tiles(ours)
            for record in source.records():
                with suppress(InputError):
                    source.read(record)


def test_what_is_cut_off_is_told(ours: Path) -> None:
    tar = ours / "1.tar"
    source = open_tiles(ours)
    last = source.listing()[-1]
    tar.write_bytes(tar.read_bytes()[: int(last.locator[1]) + 20])
    with pytest.raises(InputError, match="1/k2"):
        source.read(last)
    with pytest.raises(InputError, match="no whole tar"):
        open_tiles(ours)
    tar.write_bytes(b"no tar at all, but long enough to be looked at" * 40)
    with pytest.raises(InputError, match="no whole tar"):
        open_tiles(ours)


def test_a_range_of_scales_is_the_folder_s(ours: Path) -> None:
    assert open_tiles(ours).mpp_range is None
    for said, expected in (("[0.25, 2]", (0.25, 2.0)), ("[2, 0.25]", None), ("null", None), ("3", None)):
        (ours / ABOUT).write_text(f'{{"mpp_range": {said}}}')
        assert open_tiles(ours).mpp_range == expected
