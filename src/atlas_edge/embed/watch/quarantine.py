"""Reports of slides that are set aside, one file each: the slides stay where the scanner put them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from atlas_edge.system.atomic import write_atomic
from atlas_edge.system.paths import printable

_FOLDER = "quarantine"


def report_of(state: Path, folder: Path, slide: Path) -> Path:
    """Where a slide's report lies.

    Args:
        state: Folder of the journal.
        folder: Drop folder.
        slide: Below it.
    """
    below = slide.relative_to(folder) if folder in slide.parents else Path(slide.name)
    return state / _FOLDER / f"{'_'.join(below.parts)}.json"


def write_report(report: Path, slide: Path, error: str, attempts: int) -> None:
    """Say why a slide is set aside, and how it is tried again."""
    told = [f"atlas-embed retry {_quoted(report.parents[1])} {_quoted(slide.name)}", "replace or touch the slide"]
    said = {"slide": printable(slide), "error": printable(error), "attempts": attempts, "again": told}
    report.parent.mkdir(exist_ok=True)
    write_atomic(report, (json.dumps(said, indent=2) + "\n").encode())


def remove_report(report: Path) -> None:
    """A slide is not set aside any more."""
    report.unlink(missing_ok=True)


def _quoted(word: Path | str) -> str:
    """For the shell of this system."""
    text = printable(word)
    return subprocess.list2cmdline([text]) if sys.platform == "win32" else shlex.quote(text)
