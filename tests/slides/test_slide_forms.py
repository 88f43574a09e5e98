"""Each form of slide is read as it was written, and one that would end OpenSlide is refused instead."""

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.errors import InputError
from atlas_edge.slides import Level, open_slide
from atlas_edge.slides.readers import probe
from support import RunCommand

pytest.importorskip("openslide")
pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

from embed.conftest import make_mean_bundle
from slides import forms
from slides.forms import HEIGHT, MPP, WIDTH, WRITERS, scene, write_mrxs


@pytest.mark.parametrize("form", WRITERS)
def test_each_form_is_read_with_its_levels_and_scale(tmp_path: Path, form: str) -> None:
    slide = open_slide(WRITERS[form](tmp_path))
    assert (slide.mpp_x, slide.mpp_y) == (pytest.approx(MPP, rel=1e-3), pytest.approx(MPP, rel=1e-3))
    assert len(slide.levels) >= 2
    assert not slide.unusable_levels
    for level in range(2):
        step = 2**level
        pixels = slide.read(level, 0, 0, WIDTH // step, HEIGHT // step)
        assert np.abs(pixels.astype(int) - scene(step)).mean() < 6, level
    slide.close()


def write_endless_mrxs(folder: Path) -> Path:
    """One that asks OpenSlide for more memory than there is."""
    path = write_mrxs(folder / "a.mrxs")
    index = path.with_suffix("") / "Slidedat.ini"
    index.write_text(index.read_text().replace("FILE_COUNT=1", f"FILE_COUNT={2**31 - 1}"))
    return path


def test_a_slide_that_would_end_the_process_is_refused(tmp_path: Path, run_command: RunCommand) -> None:
    path = write_endless_mrxs(tmp_path)
    done = run_command(
        "atlas-embed", path, "--bundle", make_mean_bundle(tmp_path / "bundle"), "--out", tmp_path / "a.h5"
    )
    assert done.returncode == 5, done.stderr
    assert "a.mrxs is damaged: what it says of itself ends OpenSlide" in done.stderr


def test_tiles_that_say_they_lie_far_off_are_not_waited_for(tmp_path: Path) -> None:
    path = write_mrxs(tmp_path / "a.mrxs")
    pixels = path.with_suffix("") / "Data0000.dat"
    data = bytearray(pixels.read_bytes())
    data[1:9] = struct.pack("<2i", 2**30, 2**30)  # where the first camera position lies
    pixels.write_bytes(data)
    with pytest.raises(InputError, match="keeps it busy"):
        probe.probe(path)


def test_only_what_the_slide_did_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(returncode: int, *said: str) -> None:
        child = subprocess.CompletedProcess[str]([], returncode, "\n".join(said), "")
        monkeypatch.setattr(probe, "run_module", lambda *_, **__: child)
        probe.probe(tmp_path)

    ended(0, "begun", "done")
    ended(1)  # Python could not begin
    ended(-15, "begun")  # everything is being stopped
    for returncode in (-5, -6, -9, 3, 0):
        with pytest.raises(InputError, match="is damaged"):
            ended(returncode, "begun")


def test_a_slide_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mrxs"
    os.mkfifo(path)
    monkeypatch.setattr(probe, "_MOST_S", 1)
    with pytest.raises(InputError, match="cannot be opened in 1 s"):
        probe.probe(path)


def test_nothing_beside_the_slides_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openslide.py").write_text("open('was-run', 'w').close()")
    path = write_mrxs(tmp_path / "a.mrxs")
    monkeypatch.chdir(tmp_path)
    open_slide(path).close()
    assert not Path("was-run").exists()


def test_a_level_of_another_shape_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "scene", lambda step: scene()[:: step**2, ::step].copy())
    slide = open_slide(forms.write_ndpi(tmp_path / "low.ndpi"))
    found = [slide.levels[level] for level in sorted(slide.unusable_levels)]
    assert Level(width=WIDTH // 2, height=HEIGHT // 4, downsample_x=2, downsample_y=4) in found
    assert slide.levels[0] not in found
    slide.close()
    monkeypatch.setattr(forms, "scene", lambda step: scene()[:, ::step].repeat(step, axis=0))
    with pytest.raises(InputError, match=f"it says {WIDTH // 2} x {2 * HEIGHT} px of level 1"):
        open_slide(forms.write_ndpi(tmp_path / "high.ndpi"))
