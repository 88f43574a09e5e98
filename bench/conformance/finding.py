"""What one program says of one file."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from atlas_edge.bench.conformance.subject import Figures, Subject


class Outcome(StrEnum):
    """Of one check."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIPPED = "SKIPPED"


class Skip(Exception):
    """Why a check says nothing of this bundle on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a check found.

    Attributes:
        passed: Whether the program takes the file, and computes what it should.
        said: In words.
        figures: Of the embeddings that the program computed; None where it computed none.
        known: What is known of it where it did not pass.
    """

    passed: bool
    said: str = ""
    figures: Figures | None = None
    known: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question to one program.

    Attributes:
        program: Its name.
        distribution: By which pip knows it.
        asked: What it is asked.
        run: Asks it. What it raises is an answer, too: `Skip` where it has none, anything else where it refuses the
            file.
        command: How to ask it without atlas-edge; `MODEL` is the file, `TILES` the tiles of `--test-data`.
        version: What tells which one is installed, None where none is; for a program that is not pip's, or shares its
            name there with another.
    """

    program: str
    distribution: str
    asked: str
    run: Callable[[Subject], Answer]
    command: str
    version: Callable[[], str | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A check, and what came of it.

    Attributes:
        program: Who was asked.
        version: Of it; None where it is not installed.
        asked: What.
        outcome: PASS, FAIL or SKIPPED.
        said: What it said, or why it was not asked.
        command: How to ask it without atlas-edge.
        figures: Of the embeddings that it computed; None where it computed none.
        known: What is known of a FAIL.
    """

    program: str
    version: str | None
    asked: str
    outcome: Outcome
    said: str
    command: str
    figures: Figures | None = None
    known: str | None = None
