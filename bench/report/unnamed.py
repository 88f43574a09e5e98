"""A report without the names that this machine gives to folders, files and tiles."""

from dataclasses import replace

from atlas_edge.bench.accuracy.measure import AccuracyReport
from atlas_edge.bench.report.schema import Report
from atlas_edge.unnamed import class_numbers, command_without_paths, last_name, tile_number, unnamed_tiles


def unnamed_report(report: Report) -> Report:
    """The same figures; tile sets by kind and fingerprint, tiles by their place, models by their last name."""
    encoders = {label: replace(facts, given=last_name(facts.given)) for label, facts in report.encoders.items()}
    return report.model_copy(
        update={
            "command": command_without_paths(report.command),
            "encoders": encoders,
            "evaluation": unnamed_tiles(report.evaluation),
            "fit": unnamed_tiles(report.fit),
            "accuracy": None if report.accuracy is None else _unnamed(report.accuracy, report),
        }
    )


def _unnamed(accuracy: AccuracyReport, report: Report) -> AccuracyReport:
    assert report.evaluation is not None
    count = report.evaluation.tiles
    candidates = {
        label: replace(
            candidate,
            drops=tuple(replace(drop, classes=class_numbers(drop.classes)) for drop in candidate.drops),
            worst_tiles=()
            if candidate.agreement is None
            else tuple(tile_number(index, count) for index in candidate.agreement.worst),
        )
        for label, candidate in accuracy.candidates.items()
    }
    return replace(accuracy, candidates=candidates)
