"""`--preset smoke` trains to its end on a few tiles."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from atlas_edge.distill.training.metrics import read_metrics
from atlas_edge.models.load import load_encoder
from support import RunCommand


def test_the_smoke_preset_trains_to_its_end(
    run_command: RunCommand, tiny_model: Path, tile_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    result = run_command(
        "atlas-distill", tiny_model, "--tiles", tile_folder, "--out", out, "--preset", "smoke", "--threads", "1",
        "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["steps"], report["resumed_from"]) == (20, 0)
    options = json.loads((out / "report.json").read_text())["config"]
    assert (options["student"], options["batch"], options["views"]) == ("vit_tiny_patch16_224", 8, 2)
    rows = {row["step"]: row for row in read_metrics(out)}
    assert set(rows) == {1, 10, 20}
    assert all(math.isfinite(row["loss"]) for row in rows.values())
    assert rows[20]["loss"] < rows[1]["loss"]
    # What comes out is an encoder, and nothing is left beside it.
    tile = np.array(Image.open(next(tile_folder.rglob("*.png"))).resize((224, 224)))
    embedding = load_encoder(str(out)).encode(tile[None])
    assert embedding.shape == (1, 192) and np.isfinite(embedding).all()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
