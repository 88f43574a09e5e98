"""Which slides are meant, where their embeddings go, and what is done already."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_edge.embed.jobs import FoundSlide, expand, leave_out_done, name_outputs, one_or_many
from atlas_edge.embed.resume.plan import Plan, attributes_of, plan_of
from atlas_edge.embed.slide import EmbedConfig, embed_slide
from atlas_edge.embed.slide_files import find_slides, slide_files, slide_identity
from atlas_edge.errors import InputError, UsageError
from embed.conftest import lose_tiles, make_scan
from embed.test_embed import MeanEncoder

pytest.importorskip("h5py")
pytest.importorskip("openslide")


def names(jobs: list[tuple[Path, Path]], out: Path) -> list[str]:
    return [str(place.relative_to(out)) for _, place in jobs]


def always(plan: Plan) -> Callable[[Path], Plan]:
    """The plan of every slide."""
    return lambda _: plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("in/a.tif", "in/sub/b.svs", "in/sub/notes.txt", "in/.hidden.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "in"


def test_patterns_and_folders_are_expanded(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert [slide.path.name for slide in expand([folder / "*.tif"], out)] == ["a.tif"]
    inside = expand([folder], out)
    assert names(one_or_many(inside, [folder], out, "h5"), out) == ["a.h5", "sub/b.h5"]
    # What the shell has expanded to one slide goes into a folder, too.
    alone = [folder / "a.tif"]
    assert names(one_or_many(expand(alone, out), alone, out, "parquet"), out) == ["a.parquet"]
    assert [slide.path.name for slide in expand([folder / "a.tif", folder], out)] == ["a.tif", "b.svs"]
    for nothing in (folder / "*.ndpi", tmp_path / "out2"):
        (tmp_path / "out2").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="no slide"):
            expand([nothing], out)


def test_brackets_in_a_name_are_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "a[1].tif"
    path.touch()
    assert [slide.path for slide in expand([path], tmp_path / "out")] == [path]


def test_a_file_for_several_slides_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder for 2 slides"):
        one_or_many(expand([folder], tmp_path), [folder], tmp_path / "x.h5", "h5")
    with pytest.raises(UsageError, match=r"ends in '\.txt'"):
        one_or_many(expand([folder / "a.tif"], tmp_path), [folder / "a.tif"], tmp_path / "x.txt", "h5")


def test_slides_of_one_name_get_different_outputs(tmp_path: Path) -> None:
    given = [tmp_path / name for name in ("a/x.tif", "b/x.tif", "x.tiff", "y.svs")]
    out = tmp_path / "out"
    assert names(name_outputs(expand(given, out), out, "h5"), out) == ["a/x.h5", "b/x.h5", "x.h5", "y.h5"]
    suffixes = [tmp_path / name for name in ("x.tif", "x.tiff", "x.svs")]
    assert names(name_outputs(expand(suffixes, out), out, "h5"), out) == ["x.h5", "x.tiff.h5", "x.svs.h5"]
    dicom = [tmp_path / name for name in ("1.2.840.1", "1.2.840.7")]
    assert names(name_outputs(expand(dicom, out), out, "h5"), out) == ["1.2.840.1.h5", "1.2.840.7.h5"]


@pytest.mark.parametrize("form", ["h5", "parquet", "zarr"])
def test_done_by_the_same_plan_is_left_out_and_another_plan_refused(scan: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip({"h5": "h5py", "parquet": "pyarrow", "zarr": "zarr"}[form])
    encoder, out, config = MeanEncoder(), tmp_path / f"out.{form}", EmbedConfig(tissue=False)
    embed_slide(scan, encoder, out, config, bundle_sha256="a" * 64)
    jobs, same = [(scan, out)], {"overwrite": False, "re_embed": False}
    plan = always(plan_of(encoder.spec, config, "a" * 64))
    assert leave_out_done(jobs, plan, **same)[0] == []
    assert leave_out_done(jobs, plan, overwrite=True, re_embed=False)[0] == jobs
    others = {
        "bundle_sha256 aaaaaaaaaaaa, now bbbbbbbbbbbb": plan_of(encoder.spec, config, "b" * 64),
        "tile_mpp 0.5, now 0.25": plan_of(encoder.spec, replace(config, tile_mpp=0.25), "a" * 64),
        "min_tissue 0.1, now 0.5": plan_of(encoder.spec, replace(config, min_tissue=0.5), "a" * 64),
    }
    for said, other in others.items():
        with pytest.raises(UsageError, match=said) as raised:
            leave_out_done(jobs, always(other), **same)
        assert "--re-embed" in str(raised.value)
        assert leave_out_done(jobs, always(other), overwrite=False, re_embed=True)[0] == jobs
    os.utime(scan, (1e9, 1e9))
    with pytest.raises(UsageError, match="the slide has changed since"):
        leave_out_done(jobs, plan, **same)


def test_an_output_is_opened_once(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, out, config = MeanEncoder(), tmp_path / "out", EmbedConfig(tissue=False, overview=False)
    embed_slide(scan, encoder, out / "scan.h5", config)
    opened: list[Path] = []

    def looked(place: Path) -> dict[str, Any] | None:
        opened.append(place)
        return attributes_of(place)

    monkeypatch.setattr("atlas_edge.embed.jobs.attributes_of", looked)

    def is_left_out() -> bool:
        jobs = name_outputs([FoundSlide(scan, tmp_path)], out, "h5")
        return not leave_out_done(jobs, always(plan_of(encoder.spec, config, "")), overwrite=False, re_embed=True)[0]

    assert is_left_out() and opened == [out / "scan.h5"]
    # What was replaced meanwhile is looked at again.
    embed_slide(scan, encoder, out / "scan.h5", replace(config, min_tissue=0.5))
    assert not is_left_out()


@pytest.mark.parametrize("form", ["h5", "parquet", "zarr"])
def test_another_scale_given_to_the_slide_is_another_plan(scan: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip({"h5": "h5py", "parquet": "pyarrow", "zarr": "zarr"}[form])
    encoder, jobs = MeanEncoder(), [(scan, tmp_path / f"out.{form}")]
    says, alone = EmbedConfig(tissue=False), EmbedConfig(tissue=False, mpp=0.25, override_mpp=True)
    of_many = EmbedConfig(tissue=False, mpp=0.25)

    def is_left_out(config: EmbedConfig) -> bool:
        plan = always(plan_of(encoder.spec, config, ""))
        return not leave_out_done(jobs, plan, overwrite=False, re_embed=True)[0]

    embed_slide(scan, encoder, jobs[0][1], says)
    assert is_left_out(of_many), "the slide says its scale: what is given to many is not for it"
    assert is_left_out(EmbedConfig(tissue=False, mpp=0.5, override_mpp=True))
    assert not is_left_out(alone)
    with pytest.raises(UsageError, match=r"slide_mpp 0\.5 by slide, now 0\.25"):
        leave_out_done(jobs, always(plan_of(encoder.spec, alone, "")), overwrite=False, re_embed=False)
    embed_slide(scan, encoder, jobs[0][1], alone)
    assert is_left_out(alone)
    assert not is_left_out(replace(alone, mpp=0.4))
    assert not is_left_out(says)


def test_what_is_no_output_fails_its_slide_alone_and_is_never_replaced_unasked(tmp_path: Path) -> None:
    slides = [make_scan(tmp_path / f"{number}.tif", number) for number in range(4)]
    jobs = [(slide, tmp_path / "out" / f"{slide.stem}.h5") for slide in slides]
    plan = always(plan_of(MeanEncoder.spec, EmbedConfig(), ""))
    embed_slide(slides[0], MeanEncoder(), jobs[0][1], EmbedConfig())
    for (_, out), content in zip(jobs[1:], (b"", b"my own notes", jobs[0][1].read_bytes()), strict=True):
        out.write_bytes(content)
    to_do, done, failed = leave_out_done(jobs, plan, overwrite=False, re_embed=False)
    assert to_do == []
    assert [Path(skipped.slide) for skipped in done] == [slides[0]]
    assert [Path(failure.slide) for failure in failed] == slides[1:]
    assert all("is no output of atlas-embed" in failure.reason for failure in failed[:2])
    assert all("--re-embed" in failure.reason for failure in failed[:2])
    assert "was made of 0.tif" in failed[2].reason
    to_do, _, failed = leave_out_done(jobs, plan, overwrite=False, re_embed=True)
    assert to_do == jobs[1:3], "what was made of another slide is not this one's"
    assert [Path(failure.slide) for failure in failed] == slides[3:]


def test_an_output_of_another_slide_keeps_its_name(tmp_path: Path) -> None:
    first, second, out = make_scan(tmp_path / "x.tif"), make_scan(tmp_path / "x.tiff", 1), tmp_path / "out"
    embed_slide(first, MeanEncoder(), out / "x.h5", EmbedConfig(tissue=False))
    assert name_outputs([FoundSlide(second, tmp_path)], out, "h5") == [(second, out / "x.tiff.h5")]


def test_a_second_folder_moves_no_slide_that_is_embedded(tmp_path: Path) -> None:
    first, second, third = folders = [tmp_path / name for name in ("a", "b", "c")]
    for number, (folder, name) in enumerate(
        [(first, "x"), (first, "y"), (second, "x"), (second, "z"), (third, "x")], 1_000_000_000
    ):
        folder.mkdir(exist_ok=True)
        os.utime(make_scan(folder / f"{name}.tif", number), (number, number))
    out, encoder, config = tmp_path / "out", MeanEncoder(), EmbedConfig(tissue=False)
    plan = always(plan_of(encoder.spec, config, ""))

    def embed(*given: Path) -> list[str]:
        """The outputs that were made."""
        jobs = name_outputs(expand(given, out), out, "h5")
        to_do, _, failed = leave_out_done(jobs, plan, overwrite=False, re_embed=False)
        assert failed == []
        for slide, place in to_do:
            embed_slide(slide, encoder, place, config)
        return sorted(names(to_do, out))

    assert embed(first) == ["x.h5", "y.h5"]
    assert embed(second, first) == ["b/x.h5", "z.h5"]
    assert embed(*folders) == ["c/x.h5"]
    assert embed(third) == embed(second) == embed(tmp_path) == []


def test_a_slide_of_several_files_looks_different_when_any_of_them_changes(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in ("s.mrxs", "s/Slidedat.ini", "s/Data0000.dat"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "v.vms").write_text("[Virtual Microscope Specimen]\nImageFile=v.jpg\nMapFile=v_map.jpg\n")
    for name in ("v.jpg", "v_map.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(b"1")
    for slide, part, count in (("s.mrxs", "s/Data0000.dat", 3), ("v.vms", "v_map.jpg", 3)):
        before = slide_identity(tmp_path / slide)
        assert len(slide_files(tmp_path / slide)) == count
        (tmp_path / part).write_bytes(b"22")
        assert slide_identity(tmp_path / slide) != before
        (tmp_path / part).unlink()
        assert slide_identity(tmp_path / slide).size_bytes < before.size_bytes
    # Pixels lie in the folder: nothing in there is a slide.
    (tmp_path / "s" / "macro.tif").touch()
    assert [path.name for path in find_slides(tmp_path, None)] == ["s.mrxs", "v.vms"]


def dicom(path: Path, series: str, payload: bytes = b"") -> Path:
    value = series.encode() + b"\0" * (len(series) % 2)
    element = b"\x20\x00\x0e\x00UI" + len(value).to_bytes(2, "little") + value
    path.write_bytes(bytes(128) + b"DICM" + element + payload)
    return path


def test_a_dicom_series_is_one_slide(tmp_path: Path) -> None:
    for number, series in enumerate(("1.2.3", "1.2.3", "1.2.33")):
        dicom(tmp_path / f"{number}.dcm", series)
    assert [path.name for path in find_slides(tmp_path, None)] == ["0.dcm", "2.dcm"]
    (tmp_path / "2.dcm").rename(tmp_path / "2.txt")
    given = ([tmp_path / "*.dcm"], [tmp_path / "0.dcm", tmp_path / "1.dcm"], [tmp_path / "0.dcm", tmp_path])
    for named in given:
        assert [slide.path.name for slide in expand(named, tmp_path / "out")] == ["0.dcm"]
    # A folder with one series is a slide.
    found = expand([tmp_path], tmp_path / "out.h5")
    assert one_or_many(found, [tmp_path], tmp_path / "out.h5", "h5") == [(tmp_path / "0.dcm", tmp_path / "out.h5")]
    (tmp_path / "2.txt").rename(tmp_path / "2.dcm")
    before = slide_identity(tmp_path / "0.dcm")
    dicom(tmp_path / "1.dcm", "1.2.3", b"pixels")
    assert slide_identity(tmp_path / "0.dcm") != before
    before = slide_identity(tmp_path / "0.dcm")
    dicom(tmp_path / "2.dcm", "1.2.33", b"pixels")
    assert slide_identity(tmp_path / "0.dcm") == before


def test_what_is_written_into_a_dicom_folder_is_not_its_slide(tmp_path: Path) -> None:
    folder = tmp_path / "slide"
    folder.mkdir()
    for number in range(2):
        dicom(folder / f"{number}.dcm", "1.2.3")
    os.utime(folder, (1e9, 1e9))
    before = slide_identity(folder)
    (folder / ".out.h5.work").mkdir()
    for name in (".out.h5.lock", ".out.h5.work/features", "out.mask.png", "out.h5"):
        (folder / name).write_bytes(b"x")
    assert slide_identity(folder) == before
    dicom(folder / "1.dcm", "1.2.3", b"pixels")
    assert slide_identity(folder) != before


def test_folders_that_go_while_they_are_walked_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tif").touch()
    genuine = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "b":
            raise FileNotFoundError(2, "No such file or directory", path)
        if Path(path).name == "c":
            raise PermissionError(13, "Permission denied", path)
        return genuine(path)

    monkeypatch.setattr(os, "scandir", scandir)
    unread: list[OSError] = []
    assert [path.parent.name for path in find_slides(tmp_path, None, on_error=unread.append)] == ["a"]
    assert [Path(error.filename).name for error in unread] == ["c"]
    with pytest.raises(PermissionError):
        list(find_slides(tmp_path, None))


def test_unreadable_tiles_are_tried_again(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_slide(scan, MeanEncoder(), tmp_path / "whole.h5", EmbedConfig(tissue=False))
    calls = lose_tiles(monkeypatch, 3, 5)
    result = embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", EmbedConfig(tissue=False))
    assert calls[-1] == 2
    assert result.unreadable == {}
    import h5py

    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "out.h5") as out:
        assert np.array_equal(whole["features"][:], out["features"][:])
