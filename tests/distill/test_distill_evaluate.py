from pathlib import Path

import numpy as np

from atlas_edge.bench.robustness import robustness_index
from atlas_edge.bench.tileset import pick_tiles
from atlas_edge.distill.evaluate import embed, evaluate
from atlas_edge.encoder import Encoder
from atlas_edge.models import load_encoder
from atlas_edge.spec import EncoderSpec
from atlas_edge.tiles import open_tiles


class _ByColour:
    """Embeds a tile as its mean colour, so that only the scanner makes neighbours."""

    spec = EncoderSpec(
        name="colour", architecture="none", embed_dim=3, tile_px=32, mean=(0, 0, 0), std=(1, 1, 1), pooling="avg"
    )

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        return tiles.mean((1, 2)).astype(np.float32) - 128.0


def test_robustness_by_scanner_where_one_centre_is_named(tiny_model: Path) -> None:
    student: Encoder = _ByColour()  # type: ignore[assignment]
    tested = pick_tiles(open_tiles("synthetic:256", role="evaluation"), limit=None, fit="resize")
    result = evaluate(load_encoder(str(tiny_model)), student, fit="synthetic:64", tiles="synthetic:256", stress_limit=0)
    assert result.robustness is not None and result.robustness.by == "scanner"
    scanners = [record.scanner or "" for record in tested.records]
    assert tested.labels is not None and tested.groups is not None
    assert result.robustness.student == robustness_index(embed(student, tested), tested.labels, scanners, tested.groups)
    assert result.robustness.teacher != result.robustness.student
    assert result.movements == () and result.scanners is None
