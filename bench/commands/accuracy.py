"""`atlas-bench accuracy A [B …]`, registered by `bench.cli`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from atlas_edge.cli import console, set_verbosity
from atlas_edge.errors import GateFailed, UsageError
from atlas_edge.options import Flag, Quiet, Verbose

if TYPE_CHECKING:
    from atlas_edge.bench.accuracy.tileset import TileSet
    from atlas_edge.bench.judge.budgets import Budget, Budgets, GateResult


def accuracy(
    *candidates: str,
    eval: str,
    reference: str | None = None,
    fit: str | None = None,
    max_drop: float | None = None,
    max_knn_drop: float | None = None,
    max_flip: float | None = None,
    min_cosine: float | None = None,
    max_robustness_drop: float | None = None,
    budgets: Path | None = None,
    limit: int | None = None,
    fit_limit: int | None = None,
    tile_fit: Literal["exact", "crop", "resize"] = "exact",
    stress_tiles: int = 48,
    robustness_k: int = 11,
    robustness_paired: Flag = False,
    speed: Flag = False,
    rounds: int = 6,
    min_throughput_ratio: float | None = None,
    report: Path | None = None,
    pictures: bool = True,
    keep_paths: Flag = False,
    overwrite: Flag = False,
    threads: int | None = None,
    seed: int = 0,
    dry_run: Flag = False,
    json: Flag = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare bundles with the full-precision encoder on the same tiles; exit 3 unless every budget is kept.

    A budget is judged on the unfavourable end of the figure's 95 % interval: PASS, FAIL, or INCONCLUSIVE, which says
    how many tiles would settle it; on fewer than 36 slides, where tiles name them, nothing passes. The reference embeds
    the tiles once for all candidates. Example:

        atlas-bench accuracy bundles/s-openvino-int8 bundles/s-onnx-int8 --reference s --eval tiles --max-drop 1

    Args:
        candidates: Bundle folders, model folders or registry names.
        eval: Tiles to compare on; the test split where there are splits.
        reference: The full-precision encoder: a model folder, a registry name or an fp32 bundle. Without it the
            encoders are scored one by one.
        fit: Labelled tiles to fit the probes on; the train split of --eval when left out.
        max_drop: Budget of the linear probe's drop in balanced accuracy, percentage points.
        max_knn_drop: Budget of the kNN probe's drop, percentage points.
        max_flip: Budget of the linear probe's predictions that change, per cent.
        min_cosine: Least cosine to the reference, at the 1st percentile of the tiles; below 368 tiles nothing passes.
        max_robustness_drop: Budget of the robustness index lost, 0-1; needs classes, slides and centres.
        budgets: TOML file of budgets, one for all and others by candidate; options above win over it.
        limit: Most tiles to compare on, balanced over the labels; of registered scans the same places on each.
        fit_limit: Most tiles to fit on, balanced over the labels.
        tile_fit: What to do with tiles of another size than an encoder takes.
        stress_tiles: Tiles for the stain and scanner stress test; 0 leaves it out.
        robustness_k: Neighbours of the robustness index (11 Camelyon, 61 TCGA, 46 Tolkach).
        robustness_paired: Neighbours within paired 2 x 2 subsets, pooled, as PathoROB has them on TCGA; the subsets
            that the tile set names, or all that its classes and centres allow.
        speed: Time the encoders, too.
        rounds: Turns of every encoder when timed.
        min_throughput_ratio: Least throughput over the reference's; needs --speed.
        report: Folder to write report.json, report.md, report.html, junit.xml and benchmark lists into.
        pictures: Show the worst tiles in report.html.
        keep_paths: Write paths, and the names of tiles, classes and tile sets, into the report. They are left out
            otherwise: in a lab they name patients.
        overwrite: Replace that folder where it exists.
        threads: Inference threads; the runtime's own choice when left out.
        seed: Seed of every bootstrap.
        dry_run: Open encoders and tiles, say what would be done, and stop.
        json: Print the report as JSON on stdout.
        quiet: Print errors only.
        verbose: Print every table, and what the libraries say.
    """
    from atlas_edge.bench.accuracy.measure import AccuracyOptions, accuracy_report
    from atlas_edge.bench.encoders import open_encoders
    from atlas_edge.bench.judge.budgets import budget_from_options, judged_figures, run_gate
    from atlas_edge.bench.machine import this_machine
    from atlas_edge.bench.progress import progress_bar
    from atlas_edge.bench.report.files import check_report_folder, write_report
    from atlas_edge.bench.report.pictures import worst_tiles
    from atlas_edge.bench.report.schema import Report
    from atlas_edge.bench.report.speed_rows import speed_rows
    from atlas_edge.bench.report.terminal import print_accuracy, print_rows
    from atlas_edge.bench.report.unnamed import unnamed_report
    from atlas_edge.bench.speed.run import paces, time_encoders

    set_verbosity(quiet=quiet, verbose=verbose)
    if not candidates:
        raise UsageError("no bundle to compare", hint="atlas-bench accuracy BUNDLE --reference MODEL --eval TILES")
    options = budget_from_options(
        max_drop_pp=max_drop,
        max_knn_drop_pp=max_knn_drop,
        max_flip_percent=max_flip,
        min_cosine=min_cosine,
        max_robustness_drop=max_robustness_drop,
        min_throughput_ratio=min_throughput_ratio,
    )
    limits = _budgets(budgets, options)
    if not limits.empty and reference is None:
        raise UsageError("a budget needs a full-precision encoder to compare with", hint="give --reference MODEL")
    check_report_folder(report, overwrite=overwrite)
    screen = console(quiet=quiet)
    evaluation, fitted = _tile_sets(eval, fit, limit, fit_limit, tile_fit)
    with open_encoders(candidates, reference, threads=threads) as opened:
        if dry_run:
            screen.print(_plan(list(opened.encoders), evaluation, fitted), markup=False)
            return
        with progress_bar(screen) as progress:
            measured = accuracy_report(
                opened.encoders,
                reference=opened.reference,
                evaluation=evaluation,
                fit=fitted,
                options=AccuracyOptions(
                    stress_tiles=stress_tiles,
                    robustness_k=robustness_k,
                    robustness_paired=robustness_paired,
                    seed=seed,
                ),
                progress=progress,
            )
        timed = time_encoders(opened, rounds=rounds) if speed and opened.reference is not None else None
        gate = None if limits.empty else run_gate(limits, judged_figures(measured, timed))
        found = Report(
            command=("atlas-bench", *sys.argv[1:]),
            machine=this_machine(),
            encoders=opened.facts,
            evaluation=evaluation.provenance(),
            fit=None if fitted is None else fitted.provenance(),
            accuracy=measured,
            speed=timed,
            paces={} if timed is None else paces(timed, opened.facts),
            gate=gate,
        )
    print_accuracy(screen, found, details=verbose)
    print_rows(screen, speed_rows(found))
    if not keep_paths:
        found = unnamed_report(found)
    shown = found.accuracy if pictures and report is not None else None
    worst = {} if shown is None else worst_tiles(shown, evaluation, labels=keep_paths)
    if json:  # first: a full disk must not take the figures with it
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    if report is not None:
        write_report(found, report, overwrite=overwrite, worst=worst, screen=screen)
    _close_gate(gate)


def _budgets(path: Path | None, options: "Budget") -> "Budgets":
    from atlas_edge.bench.judge.budgets import Budgets, read_budgets

    return (Budgets() if path is None else read_budgets(path)).overridden(options)


def _tile_sets(
    eval_: str,
    fit: str | None,
    limit: int | None,
    fit_limit: int | None,
    tile_fit: Literal["exact", "crop", "resize"],
) -> "tuple[TileSet, TileSet | None]":
    from atlas_edge.bench.accuracy.tileset import pick_tiles
    from atlas_edge.tiles import open_tiles, without_split

    evaluation = pick_tiles(open_tiles(eval_, role="evaluation"), limit=limit, fit=tile_fit)
    fitted = open_tiles(fit or without_split(eval_), role="calibration")
    if fit is None and (fitted.split is None or fitted.split == evaluation.source.split):
        # No split of its own to fit on (PathoROB's subsets are none): what there is would be tested as well.
        return evaluation, None
    return evaluation, pick_tiles(fitted, limit=fit_limit, fit=tile_fit)


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
