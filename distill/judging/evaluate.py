"""What of its teacher a student keeps: probes, the stress test, and one tissue region on several scanners."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import linear_cka, tile_cosines, unit_rows
from atlas_edge.bench.accuracy.drop import AccuracyDrop, accuracy_drop, balanced_accuracy
from atlas_edge.bench.accuracy.probe import fit_probe
from atlas_edge.bench.accuracy.robustness import RobustnessIndex, robustness_counts
from atlas_edge.bench.accuracy.stress import STRESSES
from atlas_edge.bench.accuracy.tileset import TileSet, pick_tiles
from atlas_edge.bench.interval import Interval, mean_interval
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.tiles import fit_tile, open_tiles, without_split
from atlas_edge.tiles.overlap import check_disjoint, halves

_BATCH = 32
# Random subspaces over which a narrowed teacher's score is averaged: they differ by some points.
_SUBSPACES = 8
Method = Literal["linear", "knn"]
Shift = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """One probe on both encoders, each with a probe of its own.

    Attributes:
        method: `linear` or `knn`.
        teacher_score: Balanced accuracy, 0-1.
        student_score: Balanced accuracy, 0-1.
        narrowed_score: Balanced accuracy, 0-1, of the teacher's own embedding in as many dimensions as the student
            has (see `narrowed_score`): what width alone costs. None where the student is not narrower.
        retained: student / teacher.
        retained_low: Lower end of the 95 % interval, from the paired bootstrap of the drop.
        retained_high: Upper end.
        drop: The figures behind it.
    """

    method: Method
    teacher_score: float
    student_score: float
    narrowed_score: float | None
    retained: float
    retained_low: float
    retained_high: float
    drop: AccuracyDrop


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """How far embeddings move when tiles are shifted: 1 - mean cosine of shifted and unshifted, after centring.

    Each encoder's embeddings are centred on their mean over the unshifted tiles: otherwise a large common component
    makes any encoder look steady.

    Attributes:
        shift: Its name.
        teacher: 0-2.
        student: 0-2.
        student_minus_teacher: With its 95 % interval: below 0 the student is the steadier one.
    """

    shift: str
    teacher: float
    student: float
    student_minus_teacher: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannerAgreement:
    """One region on several scanners: cosine over all pairs of scanners and crops.

    Attributes:
        scanners: Names.
        crops: Crops of the region.
        teacher: Mean centred cosine.
        student: The same.
    """

    scanners: tuple[str, ...]
    crops: int
    teacher: float
    student: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """PathoROB's robustness index of both encoders, 0-1; see `bench.robustness`.

    Attributes:
        by: `center`, or `scanner` where the tiles do not name their medical centre.
        teacher: Index.
        student: Index.
    """

    by: Literal["center", "scanner"]
    teacher: RobustnessIndex
    student: RobustnessIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The whole of `atlas-distill evaluate`; `robustness` is None where no two centres or scanners are named."""

    tiles: int
    fit_tiles: int
    retention: tuple[Retention, ...]
    cka: float
    robustness: Robustness | None
    movements: tuple[Movement, ...]
    scanners: ScannerAgreement | None


def evaluate(
    teacher: Encoder,
    student: Encoder,
    *,
    fit: str,
    tiles: str | None,
    fit_limit: int = 1_500,
    limit: int = 2_000,
    stress_limit: int = 128,
    scans: Sequence[Path] = (),
    seed: int = 0,
) -> Evaluation:
    """Compare a student with its teacher.

    Args:
        teacher: The yardstick.
        student: Judged.
        fit: Labelled tiles to fit probes on (their `train` split).
        tiles: Labelled tiles to test on (their `test` split); see `labelled_tiles`.
        fit_limit: Most tiles to fit on.
        limit: Most tiles to test on.
        stress_limit: Most tiles to shift; 0 leaves the stress test out.
        scans: Registered images of one region, one a scanner.
        seed: Seed of the bootstrap.

    Raises:
        InputError: Tiles without labels, or the same ones to fit and to test on; fewer than two scans, or unreadable
            ones.
    """
    # What is wrong with the scans is told before the minutes that the rest takes.
    crops = _read_scans(scans) if scans else None
    fitted, tested = labelled_tiles(fit, tiles, fit_limit=fit_limit, limit=limit)
    fit_features = [embed(encoder, fitted) for encoder in (teacher, student)]
    features = [embed(encoder, tested) for encoder in (teacher, student)]
    drops = [
        accuracy_drop(
            fit_features=fit_features[0],
            fit_labels=fitted.labels or (),
            reference=features[0],
            candidate=features[1],
            labels=tested.labels or (),
            groups=tested.groups,
            method=method,
            candidate_fit_features=fit_features[1],
            seed=seed,
        )
        for method in ("linear", "knn")
    ]
    labels = [np.array(part.labels) for part in (fitted, tested)]
    width = features[1].shape[1]

    def narrowed(method: Method) -> float | None:
        if width >= features[0].shape[1]:
            return None
        return narrowed_score(method, (fit_features[0], features[0]), (labels[0], labels[1]), width=width, seed=seed)

    shifted = tested.head(stress_limit) if stress_limit else None
    return Evaluation(
        tiles=len(tested.records),
        fit_tiles=len(fitted.records),
        retention=tuple(_retention(drop, narrowed(drop.method)) for drop in drops),
        cka=linear_cka(features[0], features[1]),
        robustness=_robustness(features, tested),
        movements=() if shifted is None else movements(teacher, student, shifted, STRESSES, seed=seed),
        scanners=None if crops is None else scanner_agreement(teacher, student, crops),
    )


def labelled_tiles(fit: str, tiles: str | None, *, fit_limit: int, limit: int) -> tuple[TileSet, TileSet]:
    """Tiles to fit probes on and tiles to test, of which none is among the others.

    Args:
        fit: A tile set; its `train` split where it has one.
        tiles: Another one, of which the `test` split is taken where it has one. Without it, or where it is the same
            one, and that has no splits, one half of its slides (or of its tiles, where no slides are known) is fitted
            on and the other half tested.
        fit_limit: Most tiles to fit on.
        limit: Most tiles to test on.

    Raises:
        InputError: Tiles without labels, or the same ones to fit and to test on.
    """
    judged = without_split(fit) if tiles is None else tiles
    source, other = open_tiles(fit, role="calibration"), open_tiles(judged, role="evaluation")
    halved = judged == fit and source.split is None and other.split is None
    for_fit, for_test = halves(list(source.records())) if halved else (None, None)
    fitted = pick_tiles(source, records=for_fit, limit=fit_limit, fit="resize")
    tested = pick_tiles(other, records=for_test, limit=limit, fit="resize")
    check_disjoint(
        (source, fitted.records), (other, tested.records), names=("fitted", "tested"), options=("--fit", "--tiles")
    )
    if fitted.labels is None or tested.labels is None:
        raise InputError("the tiles have no labels: nothing to probe", hint="give a pack or class folders with labels")
    return fitted, tested


def embed(encoder: Encoder, tiles: TileSet, shift: Shift | None = None) -> NDArray[np.float32]:
    """Embeddings `(N, D)` of tiles, shifted first where asked."""
    found = []
    for start in range(0, len(tiles.records), _BATCH):
        part = TileSet(source=tiles.source, records=tiles.records[start : start + _BATCH], fit=tiles.fit)
        pixels = part.pixels(encoder.spec.tile_px)
        found.append(encoder.encode(pixels if shift is None else np.stack([shift(tile) for tile in pixels])))
    return np.concatenate(found)


def narrowed_score(
    method: Method,
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    labels: tuple[NDArray[np.str_], NDArray[np.str_]],
    *,
    width: int,
    seed: int = 0,
) -> float:
    """Balanced accuracy (0-1) of an embedding of which only a random subspace is left, mean of eight subspaces.

    Random orthonormal directions nearly keep angles (Johnson & Lindenstrauss 1984) and favour no class. A student of
    that width can do better, if its directions are better ones.

    Args:
        method: `linear` or `knn`; each subspace gets a probe of its own.
        features: `(M, D)` embeddings to fit on and `(N, D)` to test.
        labels: `(M,)` and `(N,)` labels.
        width: Dimensions left, at most D.
        seed: Seed of the subspaces.
    """
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(_SUBSPACES):
        directions = np.linalg.qr(generator.normal(size=(features[0].shape[1], width)))[0].astype(np.float32)
        probe = fit_probe(method, features[0] @ directions, labels[0])
        guessed = probe.probabilities(features[1] @ directions).argmax(axis=1)
        scores.append(balanced_accuracy(np.array(probe.classes)[guessed] == labels[1], labels[1]))
    return float(np.mean(scores))


def movements(
    teacher: Encoder, student: Encoder, tiles: TileSet, shifts: Mapping[str, Shift], *, seed: int = 0
) -> tuple[Movement, ...]:
    """How far both encoders move under each shift."""
    plain = [embed(encoder, tiles) for encoder in (teacher, student)]
    result = []
    for name, shift in shifts.items():
        moved = [
            1.0 - tile_cosines(before - before.mean(0), embed(encoder, tiles, shift) - before.mean(0))
            for encoder, before in zip((teacher, student), plain, strict=True)
        ]
        result.append(
            Movement(
                shift=name,
                teacher=float(moved[0].mean()),
                student=float(moved[1].mean()),
                student_minus_teacher=mean_interval(moved[1] - moved[0], tiles.group_numbers, seed=seed),
            )
        )
    return tuple(result)


def scanner_agreement(
    teacher: Encoder, student: Encoder, scans: Mapping[str, Sequence[NDArray[np.uint8]]]
) -> ScannerAgreement:
    """Mean cosine of the same crops on different scanners; embeddings are centred on the mean over scans and crops.

    Args:
        teacher: The yardstick.
        student: Judged.
        scans: Scanner -> the same crops of one region, `(H, W, 3)`.
    """
    values = []
    for encoder in (teacher, student):
        sized = [
            np.stack([fit_tile(crop, encoder.spec.tile_px, "resize", name="crop") for crop in scan])
            for scan in scans.values()
        ]
        found = np.stack([encoder.encode(scan) for scan in sized])
        centred = found - found.mean((0, 1))
        unit = unit_rows(centred.reshape(-1, centred.shape[-1])).reshape(found.shape)
        pairs = [np.einsum("cd,cd->c", unit[a], unit[b]).mean() for a, b in combinations(range(len(scans)), 2)]
        values.append(float(np.mean(pairs)))
    crops = len(next(iter(scans.values())))
    return ScannerAgreement(scanners=tuple(scans), crops=crops, teacher=values[0], student=values[1])


def _read_scans(paths: Sequence[Path]) -> dict[str, list[NDArray[np.uint8]]]:
    """Four overlapping corner crops and the centre of each registered image."""
    from PIL import Image

    if len(paths) < 2:
        raise InputError(
            f"{len(paths)} scan, expected at least two of one region", hint="give one a scanner to --scans"
        )
    crops = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow raises many kinds for a damaged file
            raise InputError(f"{path} cannot be read: {error}", hint="give registered images to --scans") from error
        crops[path.stem if path.stem not in crops else str(path)] = _crops(pixels, path.name)
    return crops


def _crops(image: NDArray[np.uint8], name: str) -> list[NDArray[np.uint8]]:
    height, width = image.shape[:2]
    side = int(min(height, width) * 0.6)
    if side < 32:
        raise InputError(f"{name} is {width} x {height} px, too small to crop")
    corners = [(0, 0), (0, width - side), (height - side, 0), (height - side, width - side)]
    corners.append(((height - side) // 2, (width - side) // 2))
    return [image[top : top + side, left : left + side] for top, left in corners]


def _robustness(features: Sequence[NDArray[np.float32]], tiles: TileSet) -> Robustness | None:
    labels, places = tiles.labels, tiles.centers
    by: Literal["center", "scanner"] = "center"
    if places is None or len(set(places)) < 2:
        by, places = "scanner", tuple(record.scanner or "" for record in tiles.records)
    if labels is None or "" in places or min(len(set(places)), len(set(labels))) < 2:
        return None
    # Where slides are unknown, every tile is its own: only the tile itself is left out of its neighbours.
    groups = tiles.groups or tuple(record.id for record in tiles.records)
    found = [robustness_counts(one, labels, places, groups).index for one in features]
    return Robustness(by=by, teacher=found[0], student=found[1])


def _retention(drop: AccuracyDrop, narrowed: float | None) -> Retention:
    teacher = drop.reference_score
    return Retention(
        method=drop.method,
        teacher_score=teacher,
        student_score=drop.candidate_score,
        narrowed_score=narrowed,
        retained=drop.candidate_score / teacher,
        retained_low=1.0 - drop.high_pp / 100.0 / teacher,
        retained_high=1.0 - drop.low_pp / 100.0 / teacher,
        drop=drop,
    )
