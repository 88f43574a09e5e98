"""`atlas-bench`: is it fast enough, and what did it cost in accuracy?"""

import math
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter

from atlas_edge.bench.selftest_command import selftest
from atlas_edge.bench.slide_check_command import slide_check, slide_pair
from atlas_edge.bench.slide_command import slide
from atlas_edge.cli import console, make_app, print_json, run_app, set_verbosity
from atlas_edge.errors import GateFailed, UsageError

HELP = """Time encoders and measure what a bundle costs in accuracy.

Example:

    atlas-bench speed bundles/my-student-openvino-int8 my-student
"""

app = make_app("atlas-bench", HELP)
app.command(selftest)
app.command(slide)
app.command(slide_check)
app.command(slide_pair)

Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="")]


@app.command
def speed(
    *encoders: str,
    reference: str | None = None,
    batch: int = 8,
    rounds: int = 10,
    threads: int | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time bundles and models side by side: latency of one tile, throughput, ratios with intervals.

    Args:
        encoders: Bundle folders, model folders or registry names.
        reference: Which of them the ratios refer to; the first when left out.
        batch: Tiles a call in the throughput scenario.
        rounds: Turns of every encoder.
        threads: Inference threads; the runtime's own choice when left out.
        json: Print the report with its raw samples as JSON on stdout.
        quiet: Print errors only.
    """
    from rich.table import Table

    from atlas_edge.bench.selftest import selftest_tiles
    from atlas_edge.bench.speed import paired_speed
    from atlas_edge.models import load_encoder

    set_verbosity(quiet=quiet, verbose=False)
    if not encoders:
        raise UsageError("no encoder to time", hint="atlas-bench speed BUNDLE [BUNDLE …]")
    opened = {name: load_encoder(name, threads=threads) for name in encoders}
    spec = opened[encoders[0]].spec
    report = paired_speed(
        opened,
        selftest_tiles(spec, max(batch, 16)),
        reference=encoders[0] if reference is None else reference,
        batch=batch,
        rounds=rounds,
    )
    table = Table("encoder", "p50", "p99", "tiles/s", "over the reference")
    for name, figures in report.encoders.items():
        ratio = figures.throughput_ratio
        table.add_row(
            f"{name} ({figures.runtime})",
            f"{figures.latency.p50_ms:.1f} ms",
            f"{figures.latency.p99_ms:.1f} ms",
            f"{figures.throughput.tiles_per_s:.0f}",
            "reference" if ratio is None else f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]",
        )
    screen = console(quiet=quiet)
    screen.print(table)
    screen.print(f"Timed: {report.timed_region}.", style="dim")
    for warning in report.warnings:
        screen.print(warning, style="yellow")
    if json:
        print_json(asdict(report))


@app.command
def accuracy(
    *bundles: str,
    reference: str,
    eval: str,
    fit: str | None = None,
    max_drop: float | None = None,
    limit: int | None = None,
    stress_tiles: int = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare bundles with the full-precision encoder on the same tiles; exit 3 where a budget is missed.

    Args:
        bundles: Bundle folders, or models.
        reference: The full-precision encoder: a model folder, a registry name, or an fp32 bundle.
        eval: Tiles to test on; the test split where there are splits.
        fit: Labelled tiles to fit the probes on; the train split of --eval when left out.
        max_drop: Budget on the upper end of the linear probe's drop, percentage points.
        limit: Most tiles of each set.
        stress_tiles: Tiles for the stain and scanner stress test; 0 leaves it out.
        json: Print the report as JSON on stdout.
        quiet: Print errors only.
    """
    from atlas_edge.bench.accuracy import AccuracyOptions, accuracy_report
    from atlas_edge.bench.gate import Verdict, judge
    from atlas_edge.bench.tileset import pick_tiles
    from atlas_edge.models import load_encoder
    from atlas_edge.tiles import open_tiles

    set_verbosity(quiet=quiet, verbose=False)
    if not bundles:
        raise UsageError("no bundle to compare", hint="atlas-bench accuracy BUNDLE --reference MODEL --eval TILES")
    encoders = {"reference": load_encoder(reference), **{name: load_encoder(name) for name in bundles}}
    evaluation = pick_tiles(open_tiles(eval, role="evaluation"), limit=limit)
    fitted = open_tiles(fit or eval.partition("@")[0], role="calibration")
    has_fit = fit is not None or bool(fitted.splits())
    report = accuracy_report(
        encoders,
        reference="reference",
        evaluation=evaluation,
        fit=pick_tiles(fitted, limit=limit) if has_fit else None,
        options=AccuracyOptions(stress_tiles=stress_tiles),
    )
    verdicts: dict[str, Verdict] = {}
    for name in bundles:
        drop = next((d for d in report.candidates[name].drops if d.method == "linear" and not d.refitted), None)
        if max_drop is not None:
            if drop is None:
                raise UsageError("--max-drop needs labelled tiles", hint="give --fit and --eval labelled tiles")
            verdicts[name] = judge(drop.interval, max_drop)
    screen = console(quiet=quiet)
    screen.print(_accuracy_table(report, bundles, verdicts))
    for note in report.notes:
        screen.print(note, style="dim")
    if json:
        print_json(_finite(asdict(report)))
    missed = [f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict is not Verdict.PASS]
    if missed:
        raise GateFailed("; ".join(missed), hint="see the intervals above; more tiles settle INCONCLUSIVE")


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


def _accuracy_table(report: Any, bundles: tuple[str, ...], verdicts: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("bundle", "cosine median", "p1", "worst", "linear drop, 95 %", "kNN drop, 95 %", "flips", "gate")
    for name in bundles:
        candidate = report.candidates[name]
        agreement = candidate.agreement
        own = {drop.method: drop for drop in candidate.drops if not drop.refitted}
        cosines = (
            [f"{v:.5f}" for v in (agreement.cosine_median, agreement.cosine_p1, agreement.cosine_worst)]
            if agreement
            else [""] * 3
        )
        drops = [
            f"{own[m].drop_pp:+.1f} pp [{own[m].low_pp:+.1f}, {own[m].high_pp:+.1f}]" if m in own else ""
            for m in ("linear", "knn")
        ]
        flips = f"{own['linear'].flips:.1%}" if "linear" in own else ""
        table.add_row(name, *cosines, *drops, flips, str(verdicts.get(name, "")))
    return table


def _finite(value: Any) -> Any:
    # JSON has no NaN: a figure that does not exist is null.
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
