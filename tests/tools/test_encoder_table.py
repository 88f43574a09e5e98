"""The committed table of known encoders, on two small networks of their forms."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm")

import encoder_table as tool
from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.published.known import Known, known_encoders

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 3}


def small(**facts: Any) -> Known:
    stated = {"name": "small", "title": "Small", "architecture": "vit_tiny_patch16_224", "sources": {}, "tile_px": 32}
    return Known.model_validate(stated | {"arguments": SMALL} | facts)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    document = tmp_path / "page.md"
    document.write_text(f"# Page\n\n{tool.BEGIN}\nold\n{tool.END}\n\nThe end.\n")
    return document


def with_table(monkeypatch: pytest.MonkeyPatch, *entries: Known) -> None:
    table = {known.name: known for known in entries}
    monkeypatch.setattr(tool, "known_encoders", lambda: table)
    monkeypatch.setattr("atlas_edge.models.load.known_encoders", lambda: table)


def cells(page: Path, name: str) -> list[str]:
    (line,) = [line for line in page.read_text().splitlines() if f"(`{name}`)" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_go_between_the_marks(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gated = SMALL | {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "reg_tokens": 2, "global_pool": ""}
    with_table(
        monkeypatch,
        small(arguments=gated, pooling="cls+mean", mpp=[0.5, 1], licence="mit", students="yes"),
        small(name="closed", title="Closed", cannot="its door is shut"),
    )
    monkeypatch.setattr(tool, "_CALIBRATION", 8)
    monkeypatch.setattr(tool, "_JUDGED", 8)
    tool.encoder_table(page, depth=1, only="small", int8=True)
    assert "*Closed*" not in page.read_text()
    with_numbers = cells(page, "small")[8:]
    assert float(with_numbers[0]) > 0.99 and float(with_numbers[1]) <= float(with_numbers[0])
    tool.encoder_table(page, depth=2)
    text = page.read_text()
    assert text.startswith("# Page\n") and text.endswith("\n\nThe end.\n") and "old" not in text
    assert "*Closed* cannot be loaded: its door is shut." in text
    found = cells(page, "small")
    assert found[1].endswith("M, 2 of 3 blocks")
    assert found[2:7] == ["32; 0.5, 1", "96-d cls+mean", "mit", "yes", "yes"]
    assert float(found[7]) < 1e-6
    way = "OpenVINO INT8 layer by layer, ONNX and TensorRT INT8 block by block, TensorRT FP8 to the nearest."
    assert f"**All take the same way**: {way}" in text
    assert cells(page, "closed")[6] == "no, exit 5"


def test_ways_that_differ_have_columns(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = small(), small(name="other", arguments=SMALL | {"act_layer": "hard_swish"})
    with_table(monkeypatch, plain, other)
    tool.encoder_table(page, depth=1)
    assert cells(page, "small")[8:] == ["layer by layer", "block by block", "to the nearest"]
    assert cells(page, "other")[8].startswith("NNCF: blocks.0.mlp.act is a")
    assert "All take" not in page.read_text()


def test_a_network_that_does_not_load_is_a_row(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_table(monkeypatch, small(arguments=SMALL | {"class_token": False, "global_pool": "avg"}, pooling="cls"))
    tool.encoder_table(page)
    assert cells(page, "small")[6] == "no, exit 5"


def test_what_cannot_be_written_is_refused_first(page: Path) -> None:
    with pytest.raises(UsageError, match="no known encoder is called 'nobody'"):
        tool.encoder_table(page, only="uni,nobody")
    page.write_text("# Page\n")
    with pytest.raises(InputError, match="lacks the marks"):
        tool.encoder_table(page)


def test_the_page_has_a_row_for_every_encoder_and_none_is_a_bug() -> None:
    from support import ROOT

    text = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
    table = text.partition(tool.BEGIN)[2].partition(tool.END)[0]
    for known in known_encoders().values():
        assert f"(`{known.name}`)" in table, known.name
    assert "exit 1" not in table
