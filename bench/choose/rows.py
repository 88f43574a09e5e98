"""What was measured of a package, as a table that says why."""

from atlas_edge.bench.report.rows import Rows
from atlas_edge.package.choice import Candidate, Choice

_WORDS = {
    "chosen": "CHOSEN",
    "passed": "slower",
    "no gain": "no gain",
    "same": "same",
    "wrong": "WRONG",
    "not here": "not here",
}


def choice_rows(name: str, choice: Choice) -> Rows:
    """One row a variant, from the most exact to the least.

    Args:
        name: What the package is called.
        choice: From `choose`, or remembered.
    """
    headings = ("variant", "1 - cosine", "tiles/s", "over the kept, 95 %", "outcome")
    rows = tuple(
        (
            called(candidate),
            _number(candidate.distance, ".2g"),
            _number(candidate.tiles_per_s, ".1f"),
            "" if candidate.ratio is None else "{:.2f}x [{:.2f}, {:.2f}]".format(*candidate.ratio),
            _WORDS[candidate.outcome],
        )
        for candidate in choice.candidates
    )
    notes = (
        "1 - cosine: median distance to the full-precision embeddings that the variant carries. Throughput: each took "
        "turns with the one kept so far; a less exact variant must be faster by 5 %, with all of the interval.",
        *(_note(candidate) for candidate in choice.candidates),
        *choice.notes,
    )
    return Rows(title=f"Variants of {name} on this machine", headings=headings, rows=rows, notes=notes)


def called(candidate: Candidate) -> str:
    """A variant, with the device that it was tried on where that is not its runtime's own choice."""
    return candidate.variant if candidate.device is None else f"{candidate.variant} on {candidate.device}"


def _note(candidate: Candidate) -> str:
    runs = "" if candidate.runtime is None else f" ({candidate.runtime})"
    return f"{called(candidate)}: {candidate.reason}{runs}."


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
