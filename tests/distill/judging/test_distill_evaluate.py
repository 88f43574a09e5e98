import shutil
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.bench.accuracy.robustness import robustness_counts
from atlas_edge.bench.accuracy.tileset import pick_tiles
from atlas_edge.distill.judging.evaluate import embed, evaluate, labelled_tiles, narrowed_score
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.models.load import load_encoder
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
    found = robustness_counts(embed(student, tested), tested.labels, scanners, tested.groups)
    assert result.robustness.student == found.index
    assert result.robustness.teacher != result.robustness.student
    assert result.movements == () and result.scanners is None
    fitted = pick_tiles(open_tiles("synthetic:64", role="calibration"), limit=None, fit="resize")
    teacher = load_encoder(str(tiny_model))
    features, labels = (
        (embed(teacher, fitted), embed(teacher, tested)),
        (np.array(fitted.labels), np.array(tested.labels)),
    )
    for entry in result.retention:
        assert entry.narrowed_score == narrowed_score(entry.method, features, labels, width=3)


def test_a_narrowed_embedding_loses_what_its_width_costs() -> None:
    generator = np.random.default_rng(0)
    labels = np.array([f"class {number}" for number in range(16)] * 40)
    centres = np.eye(16, 64, dtype=np.float32)
    features = np.tile(centres, (40, 1)) + 0.1 * generator.normal(size=(640, 64)).astype(np.float32)
    fitted, tested = slice(None, 320), slice(320, None)

    def score(width: int) -> float:
        parts = (features[fitted], features[tested])
        return narrowed_score("knn", parts, (labels[fitted], labels[tested]), width=width)

    assert score(64) == 1.0  # all dimensions, only rotated: cosines are the same
    assert score(1) < score(4) < score(16) <= 1.0
    assert score(1) == pytest.approx(2 / 16, abs=0.06)  # a cosine in one dimension is a sign


def test_a_student_as_wide_as_its_teacher_is_not_narrowed(tiny_model: Path) -> None:
    teacher = load_encoder(str(tiny_model))
    result = evaluate(teacher, teacher, fit="synthetic:32", tiles="synthetic:32", stress_limit=0)
    assert [entry.narrowed_score for entry in result.retention] == [None, None]
    assert [entry.retained for entry in result.retention] == [1.0, 1.0]


def test_tiles_without_splits_are_parted_into_those_that_fit_and_those_that_judge(tile_folder: Path) -> None:
    for tiles in (None, str(tile_folder)):
        fitted, tested = labelled_tiles(str(tile_folder), tiles, fit_limit=1_500, limit=2_000)
        ids = [{record.id for record in part.records} for part in (fitted, tested)]
        assert len(ids[0]) == len(ids[1]) == 12
        assert not ids[0] & ids[1]
        assert set(fitted.labels or ()) == set(tested.labels or ()) == {"dark", "light"}


def test_splits_are_used_as_they_are_named(tiles: Path, tmp_path: Path) -> None:
    below_an_at = shutil.copytree(tiles, tmp_path / "lab@home" / "tiles")
    for fit in (str(tiles), f"{tiles}@train", f"{below_an_at}@train"):
        fitted, tested = labelled_tiles(fit, None, fit_limit=1_500, limit=2_000)
        assert [len(part.records) for part in (fitted, tested)] == [48, 32]


@pytest.mark.parametrize("spelling", ["{0}@train", "{0}/../{1}@train"])
def test_tiles_that_fit_and_judge_are_refused_however_they_are_spelt(spelling: str, tiles: Path) -> None:
    with pytest.raises(InputError, match=r"48 tiles .* in both the fitted tiles and the tested tiles"):
        labelled_tiles(f"{tiles}@train", spelling.format(tiles, tiles.name), fit_limit=1_500, limit=2_000)
