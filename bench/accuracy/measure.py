"""The accuracy report: every figure about embeddings, for a reference and its candidates on the same tiles."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import Agreement, embedding_agreement, linear_cka, tile_cosines
from atlas_edge.bench.accuracy.croma import CromaMargins, CromaScores, croma_margins, margin_drop
from atlas_edge.bench.accuracy.drop import AccuracyDrop, balanced_accuracy, calibration_error, drop_with_probes
from atlas_edge.bench.accuracy.plism import PlismBench, ScanPairs, plism_bench, plism_drops, scan_pairs
from atlas_edge.bench.accuracy.probe import Probe, ProbeMethod, fit_probe
from atlas_edge.bench.accuracy.robustness import (
    NeighbourCounts,
    RobustnessIndex,
    pathorob_tiles,
    robustness_counts,
)
from atlas_edge.bench.accuracy.stress import STRESSES, Shift, StressResult, stress_result
from atlas_edge.bench.accuracy.tileset import TileSet, embed_tiles
from atlas_edge.bench.interval import Interval, share_difference_interval
from atlas_edge.bench.options import AccuracyOptions
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.tiles.overlap import find_overlap

Progress = Callable[[str, int, int], None]

_METHODS: tuple[ProbeMethod, ...] = ("linear", "knn")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderScores:
    """What one encoder reaches by itself, with probes of its own.

    Attributes:
        linear: Balanced accuracy of its own linear probe, 0-1; None without labels.
        knn: Balanced accuracy of its own kNN probe, 0-1; None without labels.
        calibration_error: Expected calibration error of the linear probe, 0-1; None without labels.
        robustness: PathoROB's index; None without classes, slides and two centres.
        plism: plismbench; None without positions on two scans.
        croma: By croma's own code; None where it is not installed, or as `robustness`.
    """

    linear: float | None
    knn: float | None
    calibration_error: float | None
    robustness: RobustnessIndex | None
    plism: PlismBench | None
    croma: CromaScores | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateAccuracy:
    """What a candidate costs against the reference.

    Attributes:
        agreement: Tile by tile; None where the two have different embedding sizes.
        cosines: `(N,)` cosine of every tile in the order of evaluation; empty where agreement is None.
        worst_tiles: Identifiers of `agreement.worst`.
        cka: Linear CKA, which also compares embeddings of different sizes.
        drops: Accuracy drops: linear and kNN with the reference's probe, then both refitted; empty without labels.
        robustness_drop: Robustness index lost, 0-1, with its interval; None where the index is.
        stress: Stress test, one entry a shift; empty where left out.
        croma_drop: Mean margin of croma's that was lost, with its interval; None where there are none.
        plism_drops: Of each median of plismbench's and of their mean, what was lost; empty where there is none.
    """

    agreement: Agreement | None
    cosines: tuple[float, ...]
    worst_tiles: tuple[str, ...]
    cka: float
    drops: tuple[AccuracyDrop, ...]
    robustness_drop: Interval | None
    stress: tuple[StressResult, ...]
    croma_drop: Interval | None = None
    plism_drops: dict[str, Interval] = field(default_factory=dict)

    def drop(self, method: ProbeMethod, *, refitted: bool = False) -> AccuracyDrop | None:
        """One of the drops, or None where it was not measured."""
        found = [drop for drop in self.drops if drop.method == method and drop.refitted == refitted]
        return found[0] if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReport:
    """The accuracy section of `report.json`.

    Attributes:
        reference: Name of the full-precision encoder; None when encoders were only scored.
        scores: Figures of each encoder by itself.
        candidates: Figures of each candidate against the reference.
        notes: What could not be measured and why, and what makes figures less certain.
        encoding_s: Seconds spent in encoders (and on decoding tiles).
        statistics_s: Seconds spent on everything else.
    """

    reference: str | None
    scores: dict[str, EncoderScores]
    candidates: dict[str, CandidateAccuracy]
    notes: tuple[str, ...]
    encoding_s: float
    statistics_s: float


def accuracy_report(
    encoders: Mapping[str, Encoder],
    *,
    reference: str | None,
    evaluation: TileSet,
    fit: TileSet | None = None,
    options: AccuracyOptions | None = None,
    stresses: Mapping[str, Shift] = STRESSES,
    progress: Progress | None = None,
) -> AccuracyReport:
    """Embed the tiles with every encoder and compare.

    Args:
        encoders: Name -> encoder, the reference among them.
        reference: Name of the full-precision encoder, or None to score the encoders without comparing.
        evaluation: Tiles tested. Without labels there are agreement, retrieval and stress, but no scores.
        fit: Labelled tiles to fit probes on, disjoint from `evaluation`.
        options: What to measure.
        stresses: Name -> shift of tiles under which encoders are compared, too.
        progress: Called with what is being done, embeddings done and embeddings in all.

    Raises:
        InputError: A class that is tested but not fitted, the same tiles in both sets, or broken embeddings.
    """
    options = options or AccuracyOptions()
    labelled = fit is not None and fit.labels is not None and evaluation.labels is not None
    notes = _notes(evaluation, fit)
    _ = evaluation.positions  # refused before anything is embedded
    started = time.perf_counter()
    embedded = embed_tiles(encoders, evaluation, progress=_tell(progress, "embedding", len(encoders), evaluation))
    fitted = None
    if labelled:
        assert fit is not None
        fitted = embed_tiles(encoders, fit, progress=_tell(progress, "embedding to fit on", len(encoders), fit))
    stressed = _embed_stressed(encoders, evaluation, options, stresses, progress) if reference is not None else {}
    encoding_s = time.perf_counter() - started

    started = time.perf_counter()
    work = _Work(evaluation=evaluation, fit=fit, embedded=embedded, fitted=fitted, stressed=stressed, options=options)
    scores = {name: _scores(work, name) for name in encoders}
    candidates = {}
    if reference is not None:
        candidates = {name: _candidate(work, reference, name) for name in encoders if name != reference}
    return AccuracyReport(
        reference=reference,
        scores=scores,
        candidates=candidates,
        notes=notes,
        encoding_s=encoding_s,
        statistics_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Embeddings and what is needed to judge them; `stressed` maps a shift (or "") to embeddings of its tiles."""

    evaluation: TileSet
    fit: TileSet | None
    embedded: dict[str, NDArray[np.float32]]
    fitted: dict[str, NDArray[np.float32]] | None
    stressed: dict[str, dict[str, NDArray[np.float32]]]
    options: AccuracyOptions
    _probes: dict[tuple[str, ProbeMethod], Probe] = field(default_factory=dict)
    _margins: dict[str, CromaMargins | None] = field(default_factory=dict)
    _pairs: dict[str, ScanPairs | None] = field(default_factory=dict)

    def probe(self, name: str, method: ProbeMethod) -> Probe:
        """The probe on one encoder's embeddings; fitted once, whoever asks for it."""
        assert self.fitted is not None and self.fit is not None and self.fit.labels is not None
        if (name, method) not in self._probes:
            self._probes[name, method] = fit_probe(method, self.fitted[name], np.asarray(self.fit.labels))
        return self._probes[name, method]

    def margins(self, name: str) -> CromaMargins | None:
        """Margins of one encoder by croma; asked for once."""
        if name not in self._margins:
            tiles = self.evaluation
            known = None not in (tiles.labels, tiles.centers, tiles.groups) and _has_two_of_each(tiles)
            self._margins[name] = _margins(tiles, self.embedded[name], self.options.robustness_k) if known else None
        return self._margins[name]

    def pairs(self, name: str) -> ScanPairs | None:
        """Registered scans as one encoder sees them; compared once."""
        if name not in self._pairs:
            places, scans = self.evaluation.positions, self.evaluation.scans
            known = None if places is None or scans is None else (places, scans)
            self._pairs[name] = None if known is None else scan_pairs(self.embedded[name], *known)
        return self._pairs[name]


def _margins(tiles: TileSet, x: NDArray[np.float32], k: int) -> CromaMargins | None:
    assert tiles.labels is not None and tiles.centers is not None and tiles.groups is not None
    return croma_margins(x, tiles.labels, tiles.centers, tiles.groups, k=k, subsets=tiles.subsets)


def _has_two_of_each(tiles: TileSet) -> bool:
    """Whether there are two classes and two centres among the tiles that PathoROB's index uses."""
    used = pathorob_tiles(tiles.subsets, len(tiles.records))
    return all(len(np.unique(np.asarray(column)[used])) >= 2 for column in (tiles.labels, tiles.centers))


def _notes(evaluation: TileSet, fit: TileSet | None) -> tuple[str, ...]:
    notes = []
    if evaluation.source.synthetic:
        notes.append(
            "The evaluation tiles are synthetic: the figures say that the software works, nothing about tissue."
        )
    if evaluation.labels is None:
        notes.append("The evaluation tiles have no labels: agreement and retrieval only, no accuracy drop.")
    elif fit is None or fit.labels is None:
        notes.append("No labelled tiles to fit a probe on (--fit): agreement and retrieval only, no accuracy drop.")
    if evaluation.groups is None:
        notes.append(
            "The evaluation tiles name no slides: tiles were resampled one by one, and intervals are too narrow if "
            "tiles of one slide resemble one another."
        )
    if fit is not None:
        found = find_overlap((fit.source, fit.records), (evaluation.source, evaluation.records))
        if found.tiles:
            raise InputError(
                f"{len(found.tiles)} tiles (such as {found.tiles[0]}) are both in --eval and in --fit",
                hint="name disjoint splits: --fit PATH@train --eval PATH@test",
            )
        if found.slides:
            notes.append(
                f"{len(found.slides)} slides are both fitted and tested: scores are too good, the drop stands."
            )
    return tuple(notes)


def _tell(progress: Progress | None, what: str, encoders: int, tiles: TileSet) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(what, done, encoders * len(tiles.records))

    return tell


def _embed_stressed(
    encoders: Mapping[str, Encoder],
    evaluation: TileSet,
    options: AccuracyOptions,
    stresses: Mapping[str, Shift],
    progress: Progress | None,
) -> dict[str, dict[str, NDArray[np.float32]]]:
    if options.stress_tiles < 2:
        return {}
    tiles = evaluation.head(options.stress_tiles)
    found = {"": embed_tiles(encoders, tiles)}
    for name, shift in stresses.items():
        tell = _tell(progress, f"stress: {name}", len(encoders), tiles)
        found[name] = embed_tiles(encoders, tiles, shift=shift, progress=tell)
    return found


def _scores(work: _Work, name: str) -> EncoderScores:
    x, tiles, margins, pairs = work.embedded[name], work.evaluation, work.margins(name), work.pairs(name)
    neighbours = _neighbours(work, x)
    linear = knn = error = None
    if work.fitted is not None:
        assert tiles.labels is not None
        odds = {method: work.probe(name, method) for method in _METHODS}
        truth = np.searchsorted(np.asarray(odds["linear"].classes), np.asarray(tiles.labels))
        found = {method: probe.probabilities(x) for method, probe in odds.items()}
        linear, knn = (balanced_accuracy(found[method].argmax(axis=1) == truth, truth) for method in _METHODS)
        error = calibration_error(found["linear"], truth)
    return EncoderScores(
        linear=linear,
        knn=knn,
        calibration_error=error,
        robustness=None if neighbours is None else neighbours.index,
        plism=None if pairs is None else plism_bench(pairs),
        croma=None if margins is None else margins.scores,
    )


def _neighbours(work: _Work, x: NDArray[np.float32]) -> NeighbourCounts | None:
    tiles, options = work.evaluation, work.options
    if tiles.labels is None or tiles.centers is None or tiles.groups is None:
        return None
    if not _has_two_of_each(tiles):
        return None
    return robustness_counts(
        x,
        tiles.labels,
        tiles.centers,
        tiles.groups,
        k=options.robustness_k,
        paired=options.robustness_paired,
        subsets=tiles.subsets,
    )


def _candidate(work: _Work, reference: str, name: str) -> CandidateAccuracy:
    x, y = work.embedded[reference], work.embedded[name]
    comparable = x.shape == y.shape
    agreement = embedding_agreement(x, y, groups=work.evaluation.group_numbers) if comparable else None
    cosines = tile_cosines(x, y) if comparable else np.empty(0)
    return CandidateAccuracy(
        agreement=agreement,
        cosines=tuple(round(float(value), 7) for value in cosines),
        worst_tiles=() if agreement is None else tuple(work.evaluation.records[index].id for index in agreement.worst),
        cka=linear_cka(x, y),
        drops=_drops(work, reference, name, comparable=comparable),
        robustness_drop=_robustness_drop(work, reference, name),
        stress=_stress(work, reference, name) if comparable else (),
        croma_drop=_croma_drop(work, reference, name),
        plism_drops=_plism_drops(work, reference, name),
    )


def _drops(work: _Work, reference: str, name: str, *, comparable: bool) -> tuple[AccuracyDrop, ...]:
    if work.fitted is None:
        return ()
    assert work.evaluation.labels is not None
    found = []
    # Embeddings of another size cannot go into the reference's probe: only the refitted lines are left.
    for refitted in (False, True) if comparable else (True,):
        for method in _METHODS:
            drop = drop_with_probes(
                work.probe(reference, method),
                work.probe(name, method) if refitted else None,
                reference=work.embedded[reference],
                candidate=work.embedded[name],
                labels=work.evaluation.labels,
                groups=work.evaluation.groups,
                method=method,
                seed=work.options.seed,
            )
            found.append(drop)
    return tuple(found)


def _robustness_drop(work: _Work, reference: str, name: str) -> Interval | None:
    one, two = (_neighbours(work, work.embedded[encoder]) for encoder in (reference, name))
    if one is None or two is None:
        return None
    first, second = ((found.so, found.so + found.os) for found in (one, two))
    return share_difference_interval(first, second, work.evaluation.group_numbers, seed=work.options.seed)


def _croma_drop(work: _Work, reference: str, name: str) -> Interval | None:
    one, two = work.margins(reference), work.margins(name)
    if one is None or two is None:
        return None
    return margin_drop(one, two, work.evaluation.group_numbers, seed=work.options.seed)


def _plism_drops(work: _Work, reference: str, name: str) -> dict[str, Interval]:
    one, two = work.pairs(reference), work.pairs(name)
    return {} if one is None or two is None else plism_drops(one, two, seed=work.options.seed)


def _stress(work: _Work, reference: str, name: str) -> tuple[StressResult, ...]:
    if not work.stressed:
        return ()
    tiles = work.evaluation.head(work.options.stress_tiles)
    probe = None if work.fitted is None else work.probe(reference, "linear")
    clean = work.stressed[""]
    return tuple(
        stress_result(
            stress,
            reference=(clean[reference], shifted[reference]),
            candidate=(clean[name], shifted[name]),
            probe=probe,
            labels=None if tiles.labels is None else np.asarray(tiles.labels),
            groups=tiles.group_numbers,
            seed=work.options.seed,
        )
        for stress, shifted in work.stressed.items()
        if stress
    )
