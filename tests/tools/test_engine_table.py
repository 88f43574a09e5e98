"""The committed table of engines, on one small engine."""

from pathlib import Path

import pytest

import engine_table as tool
from atlas_edge.errors import InputError
from atlas_edge.spec import Precision
from parts import engine_kinds as kinds


def test_a_row_goes_between_the_marks(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(tool, "PRECISIONS", (Precision.FP16,))
    document = tmp_path / "page.md"
    document.write_text(f"# Page\n\n{tool.BEGIN}\nold\n{tool.END}\n\nThe end.\n")
    tool.engine_table(document, teacher=tiny_model, patches="")
    text = document.read_text()
    assert text.startswith("# Page\n") and text.endswith("\n\nThe end.\n") and "old" not in text
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {tiny_model.name} | fp16 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert float(cells[8]) > 0.999  # cosine median
    assert 0 < float(cells[3]) < 5  # engine MB


def test_a_page_that_cannot_take_the_table_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tool, "find_tensorrt")
    document = tmp_path / "page.md"
    document.write_text("# Page\n")
    with pytest.raises(InputError, match="lacks the marks"):
        tool.engine_table(document)
    assert document.read_text() == "# Page\n"
    with pytest.raises(FileNotFoundError):
        tool.engine_table(tmp_path / "none.md")


def test_every_kind_has_its_row_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(tool, "PRECISIONS", (Precision.FP16, Precision.FP8))
    monkeypatch.setattr(tool, "all_kinds", lambda: ("CNN (tiny)", "gated"))
    small = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}
    gated = {**kinds.KINDS["gated"][1], **small}
    monkeypatch.setattr(kinds, "KINDS", {"CNN (tiny)": ("resnet10t", {}), "gated": (kinds.KINDS["gated"][0], gated)})
    document = tmp_path / "page.md"
    document.write_text(f"{tool.KINDS_BEGIN}\n{tool.KINDS_END}\n")
    tool.engine_table(document, kinds=True)
    rows = [line.split(" | ") for line in document.read_text().splitlines() if line.startswith(("| CNN", "| gated"))]
    assert [(row[0].strip("| "), row[1]) for row in rows] == [
        ("CNN (tiny)", "fp16"),
        ("CNN (tiny)", "fp8"),
        ("gated", "fp16"),
        ("gated", "fp8"),
    ]
    assert rows[1][2].startswith("none: the network has no matrix product")
    assert rows[3][4] == "4 of 4" and float(rows[3][5]) > 0.9
