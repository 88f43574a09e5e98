"""The accuracy report of encoders whose embeddings are known."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.measure import AccuracyReport, accuracy_report
from atlas_edge.bench.accuracy.tileset import TileSet
from atlas_edge.bench.options import AccuracyOptions
from atlas_edge.encoder import Capabilities
from atlas_edge.errors import InputError
from atlas_edge.spec import EncoderSpec
from atlas_edge.tiles import TileRecord, TileSource

PX = 8


class Planes(TileSource):
    """Tiles of two classes by their red level, from two centres by their blue one, each position on two scanners."""

    kind = "flat folder"

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def records(self) -> Iterator[TileRecord]:
        for index in range(self.count):
            yield TileRecord(
                id=f"{self.name}{index}",
                label="ab"[index % 2],
                group=f"{self.name}-slide{index % 8}",
                center="xy"[index // 2 % 2],
                scanner=("one", "two")[index // 4 % 2],
                position=f"{index // 8}-{index % 4}",
            )

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        rng = np.random.default_rng([int(record.id.removeprefix(self.name)), len(self.name)])
        tile = rng.integers(60, 140, (PX, PX, 3))
        tile[..., 0] += 60 if record.label == "a" else 0
        tile[..., 2] += 40 if record.center == "x" else 0
        return tile.astype(np.uint8)

    def splits(self) -> frozenset[str]:
        return frozenset()

    def fingerprint(self) -> str:
        return self.name


@dataclass
class Projection:
    """A fixed random projection of the pixels, with noise of its own where asked."""

    noise: float = 0.0
    width: int = 16
    runtime: str = "numpy"
    calls: int = field(default=0)
    capabilities = Capabilities()

    @property
    def spec(self) -> EncoderSpec:
        return EncoderSpec(
            name="p", architecture="none", embed_dim=self.width, tile_px=PX, mean=(0, 0, 0), std=(1, 1, 1),
            pooling="cls",
        )  # fmt: skip

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.calls += len(tiles)
        matrix = np.random.default_rng(1).normal(size=(PX * PX * 3, self.width))
        found = (tiles.reshape(len(tiles), -1) / 255.0 - 0.4) @ matrix
        if self.noise:
            # Noise that a tile brings with itself, as rounding does: equal tiles, equal noise.
            seeds = tiles.reshape(len(tiles), -1).astype(np.int64).sum(axis=1)
            found += self.noise * np.stack([np.random.default_rng(seed).normal(size=self.width) for seed in seeds])
        return found.astype(np.float32)

    def close(self) -> None:
        pass


def _tiles(name: str, count: int) -> TileSet:
    source = Planes(name, count)
    return TileSet(source=source, records=tuple(source.records()))


@pytest.fixture(scope="module")
def report() -> AccuracyReport:
    encoders = {"ref": Projection(), "same": Projection(), "noisy": Projection(noise=3.0), "wide": Projection(width=24)}
    return accuracy_report(
        encoders,
        reference="ref",
        evaluation=_tiles("eval", 96),
        fit=_tiles("fit", 96),
        options=AccuracyOptions(stress_tiles=16, robustness_k=5),
    )


def test_an_equal_candidate_costs_nothing_anywhere(report: AccuracyReport) -> None:
    same = report.candidates["same"]
    assert same.agreement is not None and same.agreement.identical
    assert (same.agreement.cosine_worst, same.agreement.retrieval_top1) == (1.0, 1.0)
    assert same.cka == pytest.approx(1.0)
    assert [(drop.method, drop.refitted) for drop in same.drops] == [
        ("linear", False), ("knn", False), ("linear", True), ("knn", True)
    ]  # fmt: skip
    assert all((drop.low_pp, drop.drop_pp, drop.high_pp, drop.flips_high) == (0, 0, 0, 0) for drop in same.drops)
    assert same.robustness_drop is not None and same.robustness_drop.estimate == 0
    assert report.scores["same"] == report.scores["ref"]
    assert len(same.stress) == 8 and not any(result.more_fragile for result in same.stress)


def test_a_noisy_candidate_pays_on_every_line(report: AccuracyReport) -> None:
    noisy, scores = report.candidates["noisy"], report.scores
    assert noisy.agreement is not None
    assert noisy.agreement.cosine_median < 0.99 and noisy.cka < 0.99
    linear = noisy.drop("linear")
    assert linear is not None and linear.flips > 0 and linear.unit == "group" and linear.units == 8
    assert linear.reference_score == pytest.approx(scores["ref"].linear)
    assert linear.reference_calibration_error == pytest.approx(scores["ref"].calibration_error)
    assert len(noisy.cosines) == 96 and len(noisy.worst_tiles) == 8
    assert noisy.cosines[int(noisy.worst_tiles[0].removeprefix("eval"))] == pytest.approx(min(noisy.cosines))
    plisms = [scores[name].plism for name in ("ref", "noisy")]
    assert all(found is not None and found.pairs == 1 and found.positions == 48 for found in plisms)
    robust = scores["ref"].robustness
    assert robust is not None and robust.k == 5 and robust.centers == 2 and 0 < robust.index < 1


def test_another_width_leaves_what_can_be_compared(report: AccuracyReport) -> None:
    wide = report.candidates["wide"]
    assert wide.agreement is None and wide.cosines == () and wide.stress == ()
    assert 0 < wide.cka < 1
    assert [drop.refitted for drop in wide.drops] == [True, True]
    assert wide.drop("linear") is None and wide.drop("linear", refitted=True) is not None


def test_the_reference_embeds_every_tile_once_for_all_candidates() -> None:
    reference = Projection()
    encoders = {"ref": reference, "a": Projection(), "b": Projection(noise=1.0)}
    evaluation, fit = _tiles("eval", 16), _tiles("fit", 16)
    options = AccuracyOptions(stress_tiles=0)
    accuracy_report(encoders, reference="ref", evaluation=evaluation, fit=fit, options=options)
    assert reference.calls == 32


def test_without_a_reference_encoders_are_only_scored() -> None:
    found = accuracy_report({"a": Projection()}, reference=None, evaluation=_tiles("eval", 16), fit=_tiles("fit", 16))
    assert found.candidates == {} and found.scores["a"].linear is not None


def test_without_labels_to_fit_there_is_agreement_and_a_note() -> None:
    encoders = {"ref": Projection(), "a": Projection(noise=1.0)}
    found = accuracy_report(encoders, reference="ref", evaluation=_tiles("eval", 16))
    assert found.candidates["a"].drops == () and found.candidates["a"].agreement is not None
    assert any("--fit" in note for note in found.notes)


def test_slides_in_both_sets_are_noted_and_tiles_in_both_refused() -> None:
    encoders = {"ref": Projection(), "a": Projection()}
    same = _tiles("eval", 16)
    with pytest.raises(InputError, match=r"16 tiles .* both in --eval and in --fit"):
        accuracy_report(encoders, reference="ref", evaluation=same, fit=same)
    records = same.records
    halves = [TileSet(source=same.source, records=part) for part in (records[:8], records[8:])]
    options = AccuracyOptions(stress_tiles=0)
    found = accuracy_report(encoders, reference="ref", evaluation=halves[0], fit=halves[1], options=options)
    assert any("8 slides" in note and "both fitted and tested" in note for note in found.notes)
