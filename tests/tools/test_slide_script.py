"""Bundles against the obvious script, on a small slide."""

from pathlib import Path

import pytest

from atlas_edge.slides.synthetic import make_slide
from embed.conftest import make_mean_bundle
from support import RunCommand

for module in ("openslide", "tifffile", "imagecodecs", "openvino", "timm", "torchvision"):
    pytest.importorskip(module)


def test_the_script_takes_turns_with_a_bundle(tiny_model: Path, tmp_path: Path, run_tool: RunCommand) -> None:
    slide = make_slide(tmp_path / "slide.tif", 900, 700).path
    bundle = make_mean_bundle(tmp_path / "bundle")
    done = run_tool(
        "slide_script", slide, "--model", tiny_model, "--bundle", bundle, "--tiles", "8", "--rounds", "2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "the program beside them: " in said and "over that program" in said
    text = tmp_path / "notes.txt"
    text.write_text("no slide")
    refused = run_tool("slide_script", text, "--model", tiny_model, "--bundle", bundle)
    assert refused.returncode == 5
