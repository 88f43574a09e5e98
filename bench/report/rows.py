"""A report's figures as text, row by row: the terminal, Markdown and HTML all show these."""

from collections.abc import Callable
from dataclasses import dataclass

from atlas_edge.bench.accuracy.agreement import FEWEST_TILES, Agreement
from atlas_edge.bench.accuracy.drop import AccuracyDrop
from atlas_edge.bench.accuracy.measure import CandidateAccuracy, EncoderScores
from atlas_edge.bench.accuracy.plism import COSINE, KINDS, LEADERBOARD
from atlas_edge.bench.accuracy.stress import StressResult
from atlas_edge.bench.interval import FEWEST_GROUPS, Interval
from atlas_edge.bench.judge.budgets import GateCheck
from atlas_edge.bench.report.schema import Report

Cells = tuple[str, ...]
_PLISM = {COSINE: "median cosine", **{kind: f"median top-10 {kind}" for kind in KINDS}, LEADERBOARD: LEADERBOARD}
_CROMA = {"ri": "RI", "mari": "MaRI", "croma": "CRoMa", "ltm10": "LTM10"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One table.

    Attributes:
        title: What it shows.
        headings: Column titles.
        rows: Cells, as many a row as there are headings.
        notes: What must be read with it.
        keys: So many columns at the left say which row it is.
    """

    title: str
    headings: Cells
    rows: tuple[Cells, ...]
    notes: tuple[str, ...] = ()
    keys: int = 1


def summary_rows(report: Report) -> list[Rows]:
    """One line a candidate: what fits a terminal."""
    accuracy = report.accuracy
    if accuracy is None or not accuracy.candidates:
        return []
    headings = ("candidate", "cosine p1 (median)", "linear drop, 95 %", "kNN drop, 95 %", "flips", "more fragile")
    rows = []
    for name, found in accuracy.candidates.items():
        agreement, linear, knn = found.agreement, found.drop("linear"), found.drop("knn")
        cells = (
            name,
            "" if agreement is None else f"{agreement.cosine_p1:.4f} ({agreement.cosine_median:.5f})",
            "" if linear is None else interval_text(linear.interval, "+.1f", " pp"),
            "" if knn is None else interval_text(knn.interval, "+.1f", " pp"),
            "" if linear is None else f"{linear.flips:.1%}",
            f"{sum(result.more_fragile for result in found.stress)} of {len(found.stress)}" if found.stress else "",
        )
        rows.append(cells)
    return [Rows(title="Accuracy drop", headings=headings, rows=tuple(rows))]


def accuracy_rows(report: Report) -> list[Rows]:
    """The accuracy section: agreement, drops, refitted probes, each encoder's own scores, stress."""
    accuracy = report.accuracy
    if accuracy is None:
        return []
    found = []
    if accuracy.candidates:
        found += [_agreement(accuracy.candidates), *_drops(accuracy.candidates)]
    found += [*_robustness(accuracy.candidates), _scores(accuracy.scores)]
    found += _stress(accuracy.candidates)
    return found


def gate_rows(report: Report) -> list[Rows]:
    """Every budget with its verdict; nothing where there is no gate."""
    if report.gate is None:
        return []
    headings = ("candidate", "figure", "verdict", "measured, 95 %", "budget", "what would settle or mend it")
    rows = tuple(_check(check) for check in report.gate.checks)
    return [Rows(title=f"Gate: {report.gate.verdict}", headings=headings, rows=rows, keys=2)]


def interval_text(interval: Interval | None, shape: str = "+.1f", unit: str = "") -> str:
    """`+0.2 pp [-1.0, +1.3]`; empty for None."""
    if interval is None:
        return ""
    return f"{interval.estimate:{shape}}{unit} [{interval.low:{shape}}, {interval.high:{shape}}]"


def _agreement(candidates: dict[str, CandidateAccuracy]) -> Rows:
    headings = (
        "candidate",
        "cosine median",
        "1st percentile, 95 %",
        "worst",
        "CKA",
        "same-tile retrieval",
        "norm ratio",
    )
    rows = []
    for name, found in candidates.items():
        agreement = found.agreement
        if agreement is None:
            rows.append((name, "", "", "", f"{found.cka:.4f}", "", ""))
            continue
        cells = (
            name,
            f"{agreement.cosine_median:.5f}",
            interval_text(agreement.cosine_p1_interval, ".4f"),
            f"{agreement.cosine_worst:.4f}",
            f"{found.cka:.4f}",
            f"{agreement.retrieval_top1:.1%}",
            f"{agreement.norm_ratio_median:.3f}",
        )
        rows.append(cells)
    known = [found.agreement for found in candidates.values() if found.agreement is not None]
    notes = tuple(dict.fromkeys(_p1_note(agreement) for agreement in known))
    return Rows(title="Embedding agreement with the reference", headings=headings, rows=tuple(rows), notes=notes)


def _p1_note(agreement: Agreement) -> str:
    interval = agreement.cosine_p1_interval
    if interval.unit == "group":
        worth = (
            "" if agreement.effective_tiles is None else f", worth {agreement.effective_tiles:.0f} independent tiles"
        )
        basis = f"by slide or patient ({interval.units}{worth})"
    else:
        basis = f"by tile ({interval.units})"
    text = f"Interval of the 1st percentile: order statistics {basis}."
    if interval.low > -1:
        return text
    slides = f" and {FEWEST_GROUPS} slides" if interval.unit == "group" else ""
    return f"{text} It has no lower end (-1): that takes {FEWEST_TILES} independent tiles{slides}."


def _drops(candidates: dict[str, CandidateAccuracy]) -> list[Rows]:
    headings = (
        "candidate", "probe", "reference's score", "candidate's score", "drop, 95 %", "changed predictions, 95 %",
        "reference's ECE", "candidate's ECE",
    )  # fmt: skip
    drops = [(name, drop) for name, found in candidates.items() for drop in found.drops]
    if not drops:
        return []
    one = drops[0][1]
    notes = (
        f"Balanced accuracy over {len(one.classes)} classes on {one.tiles} tiles; intervals: paired bootstrap by "
        f"{one.unit} ({one.units}). The probe is fitted on the reference and tested on both; refitted means that the "
        "candidate got a probe of its own. ECE: expected calibration error, 0 to 1, without an interval; compare it "
        "within one kind of probe only.",
    )
    rows = tuple(_drop(name, drop) for name, drop in drops)
    return [Rows(title="Accuracy drop", headings=headings, rows=rows, notes=notes, keys=2)]


def _drop(name: str, drop: AccuracyDrop) -> Cells:
    probe = {"linear": "linear", "knn": "kNN"}[drop.method]
    return (
        name,
        f"{probe}, refitted" if drop.refitted else probe,
        f"{drop.reference_score:.3f}",
        f"{drop.candidate_score:.3f}",
        interval_text(drop.interval, "+.1f", " pp"),
        interval_text(drop.flip_interval.scaled(100), ".1f", " %"),
        f"{drop.reference_calibration_error:.3f}",
        f"{drop.candidate_calibration_error:.3f}",
    )


def _scores(scores: dict[str, EncoderScores]) -> Rows:
    columns: list[tuple[str, Callable[[EncoderScores], str]]] = [
        ("linear probe", lambda found: _number(found.linear)),
        ("kNN", lambda found: _number(found.knn)),
        ("calibration error", lambda found: _number(found.calibration_error)),
        ("robustness index", lambda found: "" if found.robustness is None else f"{found.robustness.index:.3f}"),
        ("plismbench cosine", lambda found: "" if found.plism is None else f"{found.plism.cosine:.3f}"),
        *[(f"plismbench top-{k}", _top(k)) for k in (1, 3, 5, 10)],
        ("median cosine", lambda found: "" if found.plism is None else _number(found.plism.cosine_median)),
        *[(f"median top-10 {kind}", _median(kind)) for kind in KINDS],
        ("plismbench leaderboard", lambda found: "" if found.plism is None else _number(found.plism.leaderboard)),
        *[(f"croma {title}", _croma(name)) for name, title in _CROMA.items()],
    ]
    kept = [(name, cell) for name, cell in columns if any(cell(found) for found in scores.values())]
    rows = tuple((name, *(cell(found) for _, cell in kept)) for name, found in scores.items())
    notes = []
    robustness = next((found.robustness for found in scores.values() if found.robustness is not None), None)
    if robustness is not None:
        subsets = f", pooled over {robustness.subsets} paired 2 x 2 subsets" if robustness.subsets else ""
        left_out = f"; {robustness.left_out} tiles of subset OOD left out" if robustness.left_out else ""
        notes.append(
            f"Robustness index (PathoROB): k = {robustness.k}, {robustness.centers} centres{subsets}{left_out}."
        )
    else:
        notes.append("No robustness index: it needs classes, slides and at least two centres.")
    plism = next((found.plism for found in scores.values() if found.plism is not None), None)
    if plism is not None:
        notes.append(
            f"plismbench: {plism.positions} positions, {plism.pairs} pairs of scans: means, and the medians of which "
            "its leaderboard is the mean."
        )
    else:
        notes.append("No plismbench: it needs positions that occur on two scans.")
    return Rows(
        title="Each encoder by itself, with probes of its own",
        headings=("encoder", *(name for name, _ in kept)),
        rows=rows,
        notes=tuple(notes),
    )


def _top(k: int) -> Callable[[EncoderScores], str]:
    return lambda found: "" if found.plism is None else f"{found.plism.top_k[k]:.1%}"


def _croma(name: str) -> Callable[[EncoderScores], str]:
    return lambda found: "" if found.croma is None else _number(getattr(found.croma, name))


def _median(kind: str) -> Callable[[EncoderScores], str]:
    return lambda found: "" if found.plism is None else _number(found.plism.top_10_medians.get(kind))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _robustness(candidates: dict[str, CandidateAccuracy]) -> list[Rows]:
    columns: dict[str, dict[str, Interval | None]] = {
        "robustness index lost, 95 %": {name: found.robustness_drop for name, found in candidates.items()},
        "croma's margin lost, 95 %": {name: found.croma_drop for name, found in candidates.items()},
    }
    for figure, title in _PLISM.items():
        lost = {name: found.plism_drops.get(figure) for name, found in candidates.items()}
        columns[f"plismbench {title} lost, 95 %"] = lost
    kept = {heading: found for heading, found in columns.items() if any(found.values())}
    rows = tuple((name, *(interval_text(found[name], "+.4f") for found in kept.values())) for name in candidates)
    if not kept:
        return []
    notes = ["Reference minus candidate on the same tiles; intervals: paired bootstrap by slide."]
    if any(found.plism_drops for found in candidates.values()):
        notes.append("plismbench: by position, drawn together on all scans: what other tissue adds is not in them.")
    return [Rows(title="Robustness lost", headings=("candidate", *kept), rows=rows, notes=tuple(notes))]


def _stress(candidates: dict[str, CandidateAccuracy]) -> list[Rows]:
    rows = [_stressed(name, result) for name, found in candidates.items() for result in found.stress]
    if not rows:
        return []
    tiles = next(result.tiles for found in candidates.values() for result in found.stress)
    headings = (
        "candidate", "shift", "reference moves", "candidate moves", "extra movement, 95 %", "agreement, 1st percentile",
        "drop on shifted tiles, 95 %", "more fragile",
    )  # fmt: skip
    notes = (
        f"{tiles} tiles, each shifted as scanners, stainers, JPEG and defocus do. An encoder moves by 1 - cosine of "
        "its embeddings of the shifted and the unshifted tile; more fragile: the interval of the extra movement lies "
        "above 0 and it exceeds a tenth of the reference's movement.",
    )
    return [Rows(title="Stress: is it more fragile?", headings=headings, rows=tuple(rows), notes=notes, keys=2)]


def _stressed(name: str, result: StressResult) -> Cells:
    return (
        name,
        result.stress,
        f"{1 - result.reference_cosine:.4f}",
        f"{1 - result.candidate_cosine:.4f}",
        interval_text(result.extra_movement, "+.4f"),
        f"{result.agreement_p1:.4f}",
        interval_text(result.drop_pp, "+.1f", " pp"),
        "YES" if result.more_fragile else "no",
    )


def _check(check: GateCheck) -> Cells:
    shape = ".4f" if check.option in ("--min-cosine", "--max-robustness-drop") else ".2f"
    sign = "at most" if check.higher_is_worse else "at least"
    return (
        check.candidate,
        check.figure,
        check.verdict.value,
        interval_text(check.value, shape),
        f"{sign} {check.budget:g}",
        check.advice,
    )
