"""A page of docs/ with two marks, between which a tool writes."""

from pathlib import Path

from atlas_edge.errors import InputError


def around(document: Path, begin: str, end: str) -> tuple[str, str]:
    """What stands before the marks, and after them.

    Raises:
        InputError: It has not both.
    """
    before, found_begin, rest = document.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise InputError(f"{document} lacks the marks {begin} and {end}", hint="add both where the table belongs")
    return before, after
