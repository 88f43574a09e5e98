"""`atlas-bench accuracy A [B …]`, registered by `bench.cli`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from cyclopts import Parameter, validators

from atlas_edge.bench.options import AccuracyOptions, AccuracyTiles, Budget, ReportOptions
from atlas_edge.errors import GateFailed, UsageError
from atlas_edge.options import Flag, Output, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from atlas_edge.bench.accuracy.stress import Shift
    from atlas_edge.bench.accuracy.tileset import TileSet
    from atlas_edge.bench.encoders import OpenedEncoders
    from atlas_edge.bench.judge.budgets import Budgets, GateResult
    from atlas_edge.bench.report.schema import Report


def accuracy(
    *candidates: str,
    tiles: AccuracyTiles,
    reference: str | None = None,
    budget: Budget = Budget(),
    budgets: Path | None = None,
    options: AccuracyOptions = AccuracyOptions(),
    speed: Flag = False,
    rounds: Annotated[int, Ge(2), Parameter(validator=validators.Number(gte=2))] = 6,
    report: ReportOptions = ReportOptions(),
    threads: Threads = None,
    device: str | None = None,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Compare bundles with the full-precision encoder on the same tiles; exit 3 unless every budget is kept.

    A budget is judged on the unfavourable end of the figure's 95 % interval: PASS, FAIL, or INCONCLUSIVE, which says
    how many tiles would settle it; on fewer than 36 slides, where tiles name them, nothing passes. The reference embeds
    the tiles once for all candidates. Example:

        atlas-bench accuracy bundles/s-openvino-int8 bundles/s-onnx-int8 --reference s --eval tiles --max-drop 1

    Args:
        candidates: Bundle folders, model folders or registry names.
        tiles: On which tiles.
        reference: The full-precision encoder: a model folder, a registry name or an fp32 bundle. Without it the
            encoders are scored one by one.
        budget: What a candidate may cost.
        budgets: TOML file of budgets, one for all and others by candidate; options above win over it.
        options: What is measured.
        speed: Time the encoders, too.
        rounds: Turns of every encoder when timed.
        report: Where the report goes.
        threads: Inference threads; the runtime's own choice when left out.
        device: What bundles run on, as their runtime calls it; models in PyTorch stay on the processor.
        dry_run: Open encoders and tiles, say what would be done, and stop.
        output: What is printed.
        output.verbose: Print every table, and what the libraries say.
    """
    from atlas_edge.bench.encoders import open_encoders
    from atlas_edge.bench.report.files import check_report_folder
    from atlas_edge.bench.report.speed_rows import speed_rows
    from atlas_edge.bench.report.terminal import print_accuracy, print_rows

    screen = output.screen()
    if not candidates:
        raise UsageError("no bundle to compare", hint="atlas-bench accuracy BUNDLE --reference MODEL --eval TILES")
    limits = _budgets(budgets, budget)
    if not limits.empty and reference is None:
        raise UsageError("a budget needs a full-precision encoder to compare with", hint="give --reference MODEL")
    check_report_folder(report.report, overwrite=report.overwrite)
    evaluation, fitted = tile_sets(tiles)
    with open_encoders(candidates, reference, threads=threads, device=device) as opened:
        if dry_run:
            screen.print(_plan(list(opened.encoders), evaluation, fitted), markup=False)
            return
        found = compared(opened, evaluation, fitted, options, screen, limits=limits, rounds=rounds if speed else 0)
    print_accuracy(screen, found, details=output.verbose)
    print_rows(screen, speed_rows(found))
    hand_out(found, evaluation, report, output)
    _close_gate(found.gate)


def compared(
    opened: "OpenedEncoders",
    evaluation: "TileSet",
    fitted: "TileSet | None",
    options: AccuracyOptions,
    screen: "Console",
    *,
    limits: "Budgets | None" = None,
    rounds: int = 0,
    stresses: "Mapping[str, Shift] | None" = None,
) -> "Report":
    """The whole report: judged where there are limits, timed where there are rounds, under other shifts where given."""
    from atlas_edge.bench.accuracy.measure import accuracy_report
    from atlas_edge.bench.accuracy.stress import STRESSES
    from atlas_edge.bench.judge.budgets import judged_figures, run_gate
    from atlas_edge.bench.machine import this_machine
    from atlas_edge.bench.progress import progress_bar
    from atlas_edge.bench.report.schema import Report
    from atlas_edge.bench.speed.run import paces, time_encoders

    with progress_bar(screen) as progress:
        measured = accuracy_report(
            opened.encoders,
            reference=opened.reference,
            evaluation=evaluation,
            fit=fitted,
            options=options,
            stresses=STRESSES if stresses is None else stresses,
            progress=progress,
        )
    timed = time_encoders(opened, rounds=rounds) if rounds and opened.reference is not None else None
    return Report(
        command=("atlas-bench", *sys.argv[1:]),
        machine=this_machine(),
        encoders=opened.facts,
        evaluation=evaluation.provenance(),
        fit=None if fitted is None else fitted.provenance(),
        accuracy=measured,
        speed=timed,
        paces={} if timed is None else paces(timed, opened.facts),
        gate=None if limits is None or limits.empty else run_gate(limits, judged_figures(measured, timed)),
    )


def hand_out(found: "Report", evaluation: "TileSet", report: ReportOptions, output: Output) -> None:
    """Print a report as JSON and write its folder, where either is asked for; without names unless paths are kept."""
    from atlas_edge.bench.report.files import write_report
    from atlas_edge.bench.report.pictures import worst_tiles
    from atlas_edge.bench.report.unnamed import unnamed_report

    if not report.keep_paths:
        found = unnamed_report(found)
    shown = found.accuracy if report.pictures and report.report is not None else None
    worst = {} if shown is None else worst_tiles(shown, evaluation, labels=report.keep_paths)
    if output.json:  # first: a full disk must not take the figures with it
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    if report.report is not None:
        write_report(found, report.report, overwrite=report.overwrite, worst=worst, screen=output.screen())


def _budgets(path: Path | None, options: Budget) -> "Budgets":
    from atlas_edge.bench.judge.budgets import Budgets, read_budgets

    return (Budgets() if path is None else read_budgets(path)).overridden(options)


def tile_sets(tiles: AccuracyTiles) -> "tuple[TileSet, TileSet | None]":
    """The tiles to compare on, and those to fit probes on; None where there are none of their own."""
    from atlas_edge.bench.accuracy.tileset import pick_tiles
    from atlas_edge.tiles import open_tiles, without_split

    evaluation = pick_tiles(open_tiles(tiles.eval, role="evaluation"), limit=tiles.limit, fit=tiles.tile_fit)
    fitted = open_tiles(tiles.fit or without_split(tiles.eval), role="calibration")
    if tiles.fit is None and (fitted.split is None or fitted.split == evaluation.source.split):
        # No split of its own to fit on (PathoROB's subsets are none): what there is would be tested as well.
        return evaluation, None
    return evaluation, pick_tiles(fitted, limit=tiles.fit_limit, fit=tiles.tile_fit)


def _plan(labels: list[str], evaluation: "TileSet", fitted: "TileSet | None") -> str:
    fit = "no probe" if fitted is None else f"probes fitted on {len(fitted.records)} tiles of {fitted.source.name}"
    return (
        f"would compare {', '.join(labels)} on {len(evaluation.records)} tiles of {evaluation.source.name}, {fit}; "
        "nothing was embedded or written"
    )


def _close_gate(gate: "GateResult | None") -> None:
    from atlas_edge.bench.judge.gate import Verdict

    if gate is None or gate.verdict is Verdict.PASS:
        return
    missed = [check for check in gate.checks if check.verdict is not Verdict.PASS]
    lines = [
        f"{check.candidate}: {check.figure}: {check.verdict} ({check.option} {check.budget:g})" for check in missed
    ]
    raise GateFailed("; ".join(lines), hint="; ".join(dict.fromkeys(check.advice for check in missed)))
