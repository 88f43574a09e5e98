"""A list of slides as a CSV file: which slides, at which scale, and what their outputs are called."""

import csv
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_edge.embed.config import SlideFacts
from atlas_edge.embed.jobs import OUTPUT_SUFFIXES, FoundSlide, in_their_folders
from atlas_edge.errors import AtlasError, InputError
from atlas_edge.slides.mpp import MPP_RANGE, is_plausible
from atlas_edge.slides.open import check_file
from atlas_edge.system.paths import printable, stays_inside

_COLUMNS = {"slide": ("slide", "wsi"), "mpp": ("mpp",), "id": ("id", "out")}
_HINT = "the first line names the columns: slide, and if wanted mpp and id"
_MOST_LISTED = 20
_LOGGER = logging.getLogger("atlas_edge")


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    slide: str
    mpp: str
    id: str


def read_slide_list(path: Path) -> tuple[list[FoundSlide], dict[Path, SlideFacts]]:
    """Slides of a CSV file, and what it says of each.

    The first line names the columns: `slide` (or `wsi`, as TRIDENT calls it), a path, relative ones counted from the
    file's folder; `mpp`, µm per pixel of level 0, whatever the slide says; `id` (or `out`), the output's name below
    `--out`, without its suffix. Empty cells say nothing, other columns are passed over, which is said once. Cells are
    parted by commas, semicolons or tabs.

    Args:
        path: The file, UTF-8.

    Raises:
        InputError: It is no such file, or lines of it are wrong: all of them are named.
    """
    lines, faults = _lines(path)
    slides: list[FoundSlide] = []
    facts: dict[Path, SlideFacts] = {}
    seen: dict[tuple[str, str], int] = {}
    for line in lines:
        found = Path(os.path.normpath(path.parent / line.slide))
        wrong = [*_wrong_with(line, found), *_repeated(line, found, seen)]
        faults += [(line.number, fault) for fault in wrong]
        if wrong:
            continue
        slides.append(FoundSlide(found, found.parent, line.id or None))
        if line.mpp:
            facts[found] = SlideFacts(mpp=float(line.mpp))
    if faults:
        faults.sort(key=lambda fault: fault[0])
        listed = [f"\n  line {number}: {fault}" for number, fault in faults[:_MOST_LISTED]]
        more = f"\n  and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
        raise InputError(f"{printable(path)}: nothing was embedded{''.join(listed)}{more}", hint="correct these lines")
    if not slides:
        raise InputError(f"{printable(path)} names no slide", hint=_HINT)
    placed = in_their_folders(slides)
    return placed, {new.path: facts[old.path] for old, new in zip(slides, placed, strict=True) if old.path in facts}


def _lines(path: Path) -> tuple[list[_Line], list[tuple[int, str]]]:
    """Lines with their cells, and what is wrong with the others."""
    try:
        # Spreadsheets begin UTF-8 with a mark.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{printable(path)} is not UTF-8 text", hint="save it as CSV UTF-8") from error
    except OSError as error:
        raise InputError(f"{printable(path)}: {error.strerror}", hint="check the path of --slides") from error
    head = text.partition("\n")[0]
    # Spreadsheets part cells by semicolons where numbers have commas.
    parted_by = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=parted_by, strict=True)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        return _cells(rows, names, _places(path, names))
    except csv.Error as error:
        raise InputError(f"{printable(path)}: line {rows.line_num}: {error}", hint="save it as CSV again") from error


def _places(path: Path, names: list[str]) -> dict[str, int]:
    """Which column holds what."""
    places: dict[str, int] = {}
    for what, known in _COLUMNS.items():
        columns = [place for place, name in enumerate(names) if name in known]
        if len(columns) > 1:
            twice = " and ".join(names[column] for column in columns)
            raise InputError(f"{printable(path)}: columns {twice} say the same", hint="keep one of them")
        if columns:
            places[what] = columns[0]
    if "slide" not in places:
        found = ", ".join(name for name in names if name) or "nothing"
        raise InputError(f"{printable(path)}: line 1 says {found}, expected a column slide", hint=_HINT)
    ignored = [name for place, name in enumerate(names) if name and place not in places.values()]
    if ignored:
        _LOGGER.warning("%s: columns that are not read: %s", printable(path.name), ", ".join(ignored))
    return places


def _cells(rows: Any, names: list[str], places: dict[str, int]) -> tuple[list[_Line], list[tuple[int, str]]]:
    lines: list[_Line] = []
    faults: list[tuple[int, str]] = []
    for row in rows:
        # A cell may hold line breaks: the reader counts lines.
        number, cells = rows.line_num, [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(names):
            faults.append((number, f"{len(cells)} cells, the first line has {len(names)}"))
            continue
        said = {what: cells[place] for what, place in places.items()}
        lines.append(_Line(number, said["slide"], said.get("mpp", ""), said.get("id", "")))
    return lines, faults


def _wrong_with(line: _Line, slide: Path) -> Iterator[str]:
    if not line.slide:
        yield "no slide is named"
    else:
        try:
            check_file(slide)
        except (AtlasError, OSError, ValueError) as error:
            yield error.message if isinstance(error, AtlasError) else f"{line.slide}: {error}"
    if line.mpp and not _is_scale(line.mpp):
        low, high = MPP_RANGE
        yield f"mpp is {line.mpp!r}, expected a number from {low} to {high:g} such as 0.25"
    if line.id and not stays_inside(line.id):
        yield f"{line.id!r} cannot be a name below --out"
    if line.id.endswith(OUTPUT_SUFFIXES):
        yield f"{line.id!r} has a suffix, which --form chooses"


def _is_scale(text: str) -> bool:
    try:
        return is_plausible(float(text))
    except ValueError:
        return False


def _repeated(line: _Line, slide: Path, seen: dict[tuple[str, str], int]) -> Iterator[str]:
    """A slide or name that an earlier line has; names that differ in case alone are one file for Windows."""
    said = (("slide", line.slide and str(slide)), ("id", line.id.casefold()))
    for what, value in said:
        before = seen.setdefault((what, value), line.number) if value else line.number
        if before != line.number:
            yield f"{line.slide if what == 'slide' else line.id} is in line {before}, too"
