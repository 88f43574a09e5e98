"""`atlas-bench fewer-tiles FEATURES…`, registered by `bench.cli`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le
from cyclopts import Parameter

from atlas_edge.cli import print_json
from atlas_edge.errors import GateFailed, InputError, UsageError
from atlas_edge.options import Options, Output

if TYPE_CHECKING:
    from atlas_edge.bench.report.rows import Rows
    from atlas_edge.bench.slides.fewer_tiles import FewerTiles


@dataclass(frozen=True, kw_only=True)
class FewerTilesOptions(Options):
    """What `atlas-bench fewer-tiles` compares, and what it may cost.

    Attributes:
        most_tiles: Most tiles of a slide; give it again to compare.
        min_cosine: Least cosine of a slide's mean embedding, from the middle of all slides, of which there are three at
            least.
        max_share_pp: How far the share of a class among a slide's tiles may move, percentage points.
    """

    most_tiles: Annotated[tuple[Annotated[int, Ge(1)], ...], Parameter(negative="")]
    min_cosine: Annotated[float | None, Ge(-1), Le(1)] = None
    max_share_pp: Annotated[float | None, Ge(0), Le(100)] = None


def fewer_tiles(
    *features: Path,
    wanted: FewerTilesOptions,
    bundle: Path | None = None,
    output: Output = Output(),
) -> None:
    """Say what `atlas-embed --most-tiles` costs on slides of which all tiles are embedded.

    No encoder runs: the tiles that it would choose are among those of the files. Exit 3 where one slide misses a
    budget. Example:

        atlas-bench fewer-tiles out/*.h5 --most-tiles 500 --most-tiles 1000 --min-cosine 0.99

    Args:
        features: HDF5 files that atlas-embed wrote, of all tiles, by one encoder.
        wanted: What is compared.
        bundle: What embedded them, beside which atlas-bench probe stored a classifier: compare its decisions, too.
        output: What is printed.
    """
    screen = output.screen()
    if not features:
        raise UsageError("no features to compare", hint="atlas-bench fewer-tiles out/*.h5 --most-tiles 500")
    from atlas_edge.bench.report.terminal import print_rows
    from atlas_edge.bench.selftest.probe import read_probe
    from atlas_edge.bench.slides.check import features_of, read_features
    from atlas_edge.bench.slides.fewer_tiles import compare_fewer_tiles

    files = features_of(features)
    names = [path.name for path in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{twice[0]} is named twice", hint="name each slide once")
    probe = None if bundle is None else read_probe(bundle)
    if bundle is not None and probe is None:
        raise InputError(
            f"no classifier lies beside {bundle}", hint=f"atlas-bench probe {bundle} --reference M --fit T"
        )
    report = compare_fewer_tiles(
        [read_features(path) for path in files],
        wanted.most_tiles,
        probe=probe,
        min_cosine=wanted.min_cosine,
        max_share_pp=wanted.max_share_pp,
    )
    print_rows(screen, [_rows(report)])
    if output.json:
        print_json(asdict(report))
    if report.missed:
        raise GateFailed("; ".join(report.missed), hint="embed more tiles")


def _rows(report: "FewerTiles") -> "Rows":
    from atlas_edge.bench.report.rows import Rows
    from atlas_edge.bench.slides.fewer_tiles import LEAST_SLIDES, worst_of

    rows = []
    for most, slides in report.slides.items():
        tiles, embedded = (sum(getattr(one, name) for one in slides.values()) for name in ("tiles", "embedded"))
        figures = [(worst_of(slides, name), form) for name, form in _FIGURES]
        same = [one.same_class for one in slides.values() if one.same_class is not None]
        rows.append(
            (
                f"{most}",
                f"{embedded} of {tiles}",
                *(f"{worst[1]:{form}} ({worst[0]})" if worst else "" for worst, form in figures),
                f"{sum(same)} of {len(same)}" if same else "",
            )
        )
    notes = ["moved: the slide's mean embedding, in root mean square distances of its tiles from it"]
    if len(next(iter(report.slides.values()))) < LEAST_SLIDES:
        notes.append(f"cosine: wants {LEAST_SLIDES} slides, whose middle it is counted from")
    headings = ("most tiles", "embedded", "cosine", "moved", "share of a class, pp", "same main class")
    known = [column for column in range(len(headings)) if any(row[column] for row in rows)]
    return Rows(
        title="Some tiles in place of all: the worst slide",
        headings=tuple(headings[column] for column in known),
        rows=tuple(tuple(row[column] for column in known) for row in rows),
        notes=tuple(notes),
    )


_FIGURES = (("cosine", ".4f"), ("moved", ".3f"), ("share_pp", ".1f"))
