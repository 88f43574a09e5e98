"""What embedding some of a slide's tiles costs: the slide's embedding and its decisions, against all of its tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.selftest.probe import StoredProbe
from atlas_edge.bench.slides.check import SlideFeatures
from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides.spread import spread_over

LEAST_SLIDES = 3
"""Of fewer the middle says nothing: two slides lie opposite each other whatever they are."""

Values = NDArray[np.float64]
_SAME = ("encoder", "bundle_sha256", "tile_px", "tile_mpp", "icc")


@dataclass(frozen=True, slots=True, kw_only=True)
class FewerOnSlide:
    """One slide with one number of tiles.

    Attributes:
        tiles: Tiles of the slide.
        embedded: Tiles that would be embedded.
        cosine: Between its mean embedding and that of all its tiles, each less the mean over slides; None of fewer than
            `LEAST_SLIDES`.
        moved: How far the mean moves, in root mean square distances of tiles from it.
        share_pp: Largest difference of a class's share of tiles, percentage points; None without a probe.
        same_class: Whether most tiles are of the same class; None without a probe.
    """

    tiles: int
    embedded: int
    cosine: float | None
    moved: float
    share_pp: float | None
    same_class: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FewerTiles:
    """Slides with some of their tiles.

    Attributes:
        slides: By most tiles, then by slide.
        missed: What is over budget, in words.
    """

    slides: dict[int, dict[str, FewerOnSlide]]
    missed: tuple[str, ...]


def compare_fewer_tiles(
    files: Sequence[SlideFeatures],
    numbers: Sequence[int],
    *,
    probe: StoredProbe | None = None,
    min_cosine: float | None = None,
    max_share_pp: float | None = None,
) -> FewerTiles:
    """Compare what `atlas-embed --most-tiles` would have embedded with all tiles of the same slides.

    The chosen tiles are those that it chooses, and no encoder is needed. Each slide is judged: nothing is estimated.

    Args:
        files: Outputs of all tiles, by one encoder; see `read_features`.
        numbers: Most tiles of a slide, several to compare.
        probe: Of the bundle: what it decides on each tile.
        min_cosine: Budget on the lowest cosine of a slide.
        max_share_pp: Budget on the largest difference of a class's share, percentage points.

    Raises:
        InputError: An output holds some of its tiles only, no tiles, or was made by another encoder than the first.
        UsageError: A budget without what it judges.
    """
    _check(files, probe, min_cosine, max_share_pp)
    middle = np.mean([_mean(file.features) for file in files], axis=0) if len(files) >= LEAST_SLIDES else None
    found = {
        most: {file.path.name: _compare(file, most, middle, probe) for file in files} for most in sorted(set(numbers))
    }
    missed = []
    for most, slides in found.items():
        for name, one in slides.items():
            if min_cosine is not None and one.cosine is not None and not one.cosine >= min_cosine:
                missed.append(f"{name} with {most} tiles: cosine {one.cosine:.4f}, at least {min_cosine:g} wanted")
            if max_share_pp is not None and one.share_pp is not None and not one.share_pp <= max_share_pp:
                missed.append(
                    f"{name} with {most} tiles: a class's share moves by {one.share_pp:.1f} pp, "
                    f"at most {max_share_pp:g} wanted"
                )
    return FewerTiles(slides=found, missed=tuple(missed))


def _check(
    files: Sequence[SlideFeatures], probe: StoredProbe | None, min_cosine: float | None, max_share_pp: float | None
) -> None:
    if min_cosine is not None and len(files) < LEAST_SLIDES:
        raise UsageError(
            f"--min-cosine on {len(files)} slide(s): cosines are counted from the middle of {LEAST_SLIDES} at least",
            hint="give the outputs of more slides",
        )
    if max_share_pp is not None and probe is None:
        raise UsageError(
            "--max-share-pp without decisions", hint="add --bundle BUNDLE, beside which atlas-bench probe stored one"
        )
    for file in files:
        if int(file.attributes.get("most_tiles", 0)):
            raise InputError(
                f"{file.path.name} holds some of its tiles only", hint="embed all of them: leave --most-tiles out"
            )
        if len(file.features) == 0 or not np.isfinite(file.features).all():
            what = "no tiles" if len(file.features) == 0 else "embeddings that are no numbers"
            raise InputError(f"{file.path.name} holds {what}", hint="leave it out")
    for one, other in pairwise(files):
        said = [{name: str(file.attributes.get(name)) for name in _SAME} for file in (one, other)]
        different = [name for name in _SAME if said[0][name] != said[1][name]]
        if different or one.features.shape[1] != other.features.shape[1]:
            raise InputError(
                f"{one.path.name} and {other.path.name} were made otherwise: {', '.join(different) or 'embed_dim'}",
                hint="give outputs of one encoder and one scale",
            )
    if probe is not None and len(probe.linear.mean) != files[0].features.shape[1]:
        dim = files[0].features.shape[1]
        raise InputError(
            f"the probe takes {len(probe.linear.mean)} numbers, {files[0].path.name} holds {dim}",
            hint="give the bundle that embedded the slides",
        )


def _compare(file: SlideFeatures, most: int, middle: Values | None, probe: StoredProbe | None) -> FewerOnSlide:
    tiles = len(file.features)
    kept = spread_over(file.coords, most)[0] if tiles > most else np.arange(tiles)
    whole, part = _mean(file.features), _mean(file.features[kept])
    spread = float(np.sqrt(((file.features - whole) ** 2).sum(axis=1).mean()))
    cosine = None if middle is None else _cosine(whole - middle, part - middle)
    shares: list[Any] = []
    if probe is not None:
        decided = probe.decide(file.features)
        shares = [np.bincount(part, minlength=len(probe.classes)) / len(part) for part in (decided, decided[kept])]
    return FewerOnSlide(
        tiles=tiles,
        embedded=len(kept),
        cosine=cosine,
        moved=float(np.linalg.norm(part - whole)) / spread if spread else 0.0,
        share_pp=100 * float(np.abs(shares[0] - shares[1]).max()) if shares else None,
        same_class=bool(shares[0].argmax() == shares[1].argmax()) if shares else None,
    )


def _mean(features: NDArray[np.float32]) -> Values:
    return np.asarray(features.mean(axis=0, dtype=np.float64))


def _cosine(one: Values, other: Values) -> float:
    """1 where both lie in the middle of all slides, 0 where one does: a direction was lost, or found."""
    norms = np.linalg.norm(one), np.linalg.norm(other)
    return float(one @ other / (norms[0] * norms[1])) if all(norms) else float(not any(norms))


def worst_of(slides: dict[str, FewerOnSlide], figure: str) -> tuple[str, float] | None:
    """On which slide a figure (`cosine`, `moved` or `share_pp`) is worst, and that figure; None where it is unknown."""
    known = {name: value for name, one in slides.items() if (value := getattr(one, figure)) is not None}
    if not known:
        return None
    worst = (min if figure == "cosine" else max)(known, key=known.__getitem__)
    return worst, known[worst]
