"""croma's own code on embeddings whose neighbours are known: its index is ours, and margins are compared in pairs."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.croma import croma_margins, margin_drop
from atlas_edge.bench.accuracy.robustness import robustness_counts
from atlas_edge.errors import InputError

K = 7


def cohort(
    biology: float, centre: float, *, seed: int = 0
) -> tuple[NDArray[np.float32], list[str], list[str], list[str]]:
    """Three classes at three centres, four slides of five tiles each, and how far apart classes and centres lie."""
    rng = np.random.default_rng(seed)
    towards = rng.normal(size=(6, 16))
    rows, labels, centres, slides = [], [], [], []
    for kind, place, slide, _ in product(range(3), range(3), range(4), range(5)):
        rows.append(rng.normal(size=16) + biology * towards[kind] + centre * towards[3 + place])
        labels.append(f"class {kind}")
        centres.append(f"centre {place}")
        slides.append(f"slide {kind} {place} {slide}")
    return np.array(rows, np.float32), labels, centres, slides


@pytest.mark.parametrize(("biology", "centre"), [(0.9, 0.5), (0.6, 0.6), (0.5, 0.9)])
def test_its_index_is_ours_to_the_last_digit(biology: float, centre: float) -> None:
    pytest.importorskip("croma")
    x, *columns = cohort(biology, centre)
    found = croma_margins(x, *columns, k=K)
    assert found is not None
    assert found.scores.ri == pytest.approx(robustness_counts(x, *columns, k=K).index.index, abs=1e-12)
    # Above the middle where biology wins, below it where the centre does.
    sides = {np.sign(found.scores.croma), np.sign(found.scores.mari - 0.5)}
    assert biology == centre or sides == {np.sign(biology - centre)}
    assert found.scores.ltm10 < found.scores.croma and found.margins.shape == (180,)


def test_what_a_candidate_loses_is_paired_by_slide() -> None:
    pytest.importorskip("croma")
    x, *columns = cohort(2.0, 0.3)
    slides = np.unique(np.asarray(columns[2]), return_inverse=True)[1]
    reference = croma_margins(x, *columns, k=K)
    noise = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    candidate = croma_margins(x + 2 * noise, *columns, k=K)
    assert reference is not None and candidate is not None
    drop = margin_drop(reference, candidate, slides)
    assert 0 < drop.low < drop.estimate < drop.high and drop.units == 36
    assert drop.estimate == pytest.approx(float((reference.margins - candidate.margins).mean()))
    assert margin_drop(reference, reference, slides).estimate == 0


def test_tiles_out_of_distribution_are_left_out_and_no_neighbours_are_no_margins() -> None:
    pytest.importorskip("croma")
    x, labels, centres, slides = cohort(2.0, 0.3)
    subsets = ["OOD" if row < 20 else "ID" for row in range(180)]
    found = croma_margins(x, labels, centres, slides, k=K, subsets=subsets)
    assert found is not None and np.isnan(found.margins[:20]).all() and np.isfinite(found.margins[20:]).all()
    # A class that is at one centre only.
    alone = ["centre 0" if label == "class 0" else centre for label, centre in zip(labels, centres, strict=True)]
    assert croma_margins(x, labels, alone, slides, k=K) is None


def test_of_more_neighbours_than_there_are_it_is_asked_for_as_many_as_we_take() -> None:
    pytest.importorskip("croma")
    x, *columns = cohort(0.9, 0.5)
    found = croma_margins(x, *columns, k=500)
    assert found is not None and found.scores.k == robustness_counts(x, *columns, k=500).index.k == 175
    assert croma_margins(x, columns[0], columns[1], ["slide"] * 180, k=K) is None


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_what_else_croma_raises_is_told(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    croma = pytest.importorskip("croma")

    def fail(*_: object, **__: object) -> None:
        raise error("no column of that name")

    monkeypatch.setattr(croma.RI, "compute", fail)
    with pytest.raises(InputError, match=r"otherwise than 1\.0\.1: .*no column of that name"):
        croma_margins(*cohort(1, 1), k=K)


def test_embeddings_that_are_all_the_same_have_no_margins() -> None:
    pytest.importorskip("croma")
    x, *columns = cohort(1, 1)
    assert croma_margins(np.ones_like(x), *columns, k=K) is None


def test_without_croma_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.bench.accuracy import croma

    monkeypatch.setattr(croma, "installed_module", lambda name: None)
    assert croma_margins(*cohort(1, 1), k=K) is None
