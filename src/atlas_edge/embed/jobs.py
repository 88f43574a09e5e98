"""From what was typed to jobs: which slides, where their embeddings go, and which of them are there already."""

import glob
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from atlas_edge.embed.resume.plan import Plan, attributes_of, differences, is_current, is_of_slide, other_plan
from atlas_edge.embed.slide_files import find_slides, one_a_series, slide_identity, slide_stem
from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides.readers.ngff import is_ngff
from atlas_edge.system.paths import SLIDE_SUFFIXES, matches, printable

FORMS = ("h5", "h5ad", "zarr", "spatialdata", "parquet", "pt")
OUTPUT_SUFFIXES = (".h5", ".hdf5", ".h5ad", ".zarr", ".spatialdata", ".parquet", ".pt")

Jobs = list[tuple[Path, Path]]
"""Slides, and the output of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideSkipped:
    """A slide with nothing left to do, and why in words: embedded by the same plan, or without tissue."""

    slide: str
    out: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFailure:
    """A slide that could not be embedded, with the exit code of its error."""

    slide: str
    reason: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class FoundSlide:
    """A slide, and the folder that it was found in: its place below that is its output's place below `--out`.

    Attributes:
        path: Slide.
        root: That folder.
        id: Of the output, where the user chose it: it is `OUT/ID.FORM` then.
    """

    path: Path
    root: Path
    id: str | None = None


def expand(slides: Sequence[Path], out: Path) -> list[FoundSlide]:
    """Slides that were named, by file, by pattern (no Windows shell expands one) or by folder.

    Of a DICOM series the first file stands for all.

    Raises:
        InputError: A pattern or folder without slides.
    """
    found: list[FoundSlide] = []
    for given in slides:
        if given.is_dir() and given.suffix.lower() not in SLIDE_SUFFIXES and not is_ngff(given):
            inside = list(find_slides(given, out if out.suffix not in OUTPUT_SUFFIXES else None))
            if not inside:
                raise InputError(
                    f"{printable(given)} holds no slide", hint=f"expected {', '.join(SLIDE_SUFFIXES)}, or an OME-Zarr"
                )
            found += [FoundSlide(path, given) for path in inside]
        elif not given.exists() and glob.has_magic(str(given)):
            matching = [path for path in matches(given) if path.is_file() or is_ngff(path)]
            if not matching:
                raise InputError(f"no slide matches {printable(given)}", hint="check the pattern")
            found += [FoundSlide(path, path.parent) for path in matching]
        else:
            found.append(FoundSlide(given, given.parent))
    slides_of = {slide.path.absolute(): slide for slide in found}
    return in_their_folders([slides_of[path] for path in one_a_series(list(slides_of))])


def in_their_folders(slides: list[FoundSlide]) -> list[FoundSlide]:
    """Slides of one name in several folders keep their folders below the one that all of them have in common."""
    roots: dict[str, set[Path]] = {}
    for slide in slides:
        if slide.id is None:
            roots.setdefault(slide_stem(slide.path), set()).add(slide.root)
    shared = {stem for stem, several in roots.items() if len(several) > 1}
    if not shared:
        return slides
    try:
        common = Path(os.path.commonpath([root.absolute() for stem in shared for root in roots[stem]]))
    except ValueError:  # drives of Windows have nothing in common: numbers tell them apart
        return slides
    return [
        FoundSlide(slide.path.absolute(), common) if slide.id is None and slide_stem(slide.path) in shared else slide
        for slide in slides
    ]


def output_names(slide: Path, root: Path, out: Path, form: str) -> Iterator[Path]:
    """Where a slide's embeddings may go, the first place that no other slide has taken.

    `OUT/SUB/STEM.FORM`, `SUB` being the folders between the root and the slide; then with the slide's whole name, then
    numbered.
    """
    folder = out / slide.relative_to(root).parent
    yield folder / f"{slide_stem(slide)}.{form}"
    yield folder / f"{slide.name}.{form}"
    for number in itertools.count(2):
        yield folder / f"{slide.name}-{number}.{form}"


def name_outputs(slides: list[FoundSlide], out: Path, form: str) -> Jobs:
    """Slides and their outputs below a folder; see `output_names`.

    A slide that is embedded there keeps its place, whatever other slides are named beside it this time.
    """
    jobs: Jobs = []
    is_folder = cache(Path.is_dir)
    kept: dict[Path, Path] = {}
    for slide in slides:
        if slide.id is None and (held := _place_that_holds(slide, out, form, is_folder)) is not None:
            kept.setdefault(held, slide.path)
    place_of = {slide: place for place, slide in kept.items()}
    place_of |= {slide.path: out / f"{slide.id}.{form}" for slide in slides if slide.id is not None}
    taken = {*kept, *place_of.values()}
    for slide in slides:
        place = place_of.get(slide.path) or next(
            place
            for place in output_names(slide.path, slide.root, out, form)
            if place not in taken and not _is_of_another(place, slide.path)
        )
        taken.add(place)
        jobs.append((slide.path, place))
    return jobs


def one_or_many(slides: list[FoundSlide], given: Sequence[Path], out: Path, form: str) -> Jobs:
    """Slides and their outputs: a file for one slide where `out` is a file's name, else files in a folder.

    Raises:
        UsageError: `out` is a file where a folder is needed, or has no form's suffix.
    """
    if form not in FORMS:
        raise UsageError(f"--form {form}: expected {', '.join(FORMS)}", hint="leave it out for h5")
    is_form = out.suffix in OUTPUT_SUFFIXES
    alone = len(slides) == 1 and slides[0].path in given
    if is_form and len(slides) == 1:
        return [(slides[0].path, out)]
    if is_form or out.is_file():
        raise UsageError(
            f"{printable(out)} is a file's name, expected a folder for {len(slides)} slides",
            hint="choose another --out",
        )
    if out.suffix and alone and not out.is_dir():
        raise UsageError(
            f"{printable(out)} ends in {out.suffix!r}, expected one of {', '.join(OUTPUT_SUFFIXES)}",
            hint="use --out slide.h5",
        )
    return name_outputs(slides, out, form)


def leave_out_done(
    jobs: Jobs, plan: Callable[[Path], Plan], *, overwrite: bool, re_embed: bool
) -> tuple[Jobs, list[SlideSkipped], list[SlideFailure]]:
    """Part jobs into those to do, those that the same plan has done, and those whose output is none of theirs.

    Args:
        jobs: Slides and outputs.
        plan: Of a slide; see `plan_of`.
        overwrite: Do all of them.
        re_embed: Do those that another plan did, and those whose output cannot be read.

    Raises:
        UsageError: An output holds embeddings of another plan.
    """
    to_do: Jobs = []
    done: list[SlideSkipped] = []
    failed: list[SlideFailure] = []
    for slide, out in jobs:
        if overwrite or not out.exists():
            to_do.append((slide, out))
            continue
        said = _attributes(out)
        if said is None and re_embed:
            to_do.append((slide, out))
            continue
        if said is None or not is_of_slide(said, slide):
            error = not_its_output(out, said, "--re-embed or --overwrite" if said is None else "--overwrite")
            failed.append(SlideFailure(slide=str(slide), reason=str(error), exit_code=error.exit_code))
            continue
        different = differences(said, plan(slide))
        if slide.exists() and not is_current(out, said, slide_identity(slide)):
            different.append("the slide has changed since")
        if not different:
            done.append(SlideSkipped(slide=str(slide), out=str(out), why="already embedded"))
        elif re_embed:
            to_do.append((slide, out))
        else:
            raise other_plan(out, different)
    return to_do, done, failed


def not_its_output(out: Path, said: Mapping[str, Any] | None, mend: str) -> UsageError:
    """What to say where something lies in an output's place that must not be replaced unasked.

    Args:
        out: That place.
        said: See `attributes_of`.
        mend: The options that replace it, "" where there is none.
    """
    what = "is no output of atlas-embed that can be read" if said is None else f"was made of {said['slide']}"
    ways = [f"add {mend} to replace it"] if mend else []
    return UsageError(f"{printable(out)} {what}", hint=", or ".join([*ways, "choose another --out"]))


def _place_that_holds(slide: FoundSlide, out: Path, form: str, is_folder: Callable[[Path], bool]) -> Path | None:
    """Where a slide's embeddings are already, whichever folder above it was named then."""
    path = slide.path.absolute()
    try:
        identity = slide_identity(path)
    except OSError:  # it will fail where it is embedded
        return None
    for root in (slide.root.absolute(), *path.parents):
        if not is_folder(out / path.relative_to(root).parent):
            continue
        for place in itertools.takewhile(Path.exists, output_names(path, root, out, form)):
            said = _attributes(place) or {}
            if "slide" in said and is_of_slide(said, path) and is_current(place, said, identity):
                return place
    return None


def _is_of_another(place: Path, slide: Path) -> bool:
    said = _attributes(place) if place.exists() else None
    return said is not None and not is_of_slide(said, slide)


def _attributes(out: Path) -> dict[str, Any] | None:
    try:
        status = out.stat()
    except OSError:  # it went a moment ago
        return None
    return _attributes_as_they_are(out, status.st_ino, status.st_mtime_ns)


# Asked for when outputs are named, and again when they are left out: in an archive a matter of minutes.
@lru_cache(maxsize=2**14)
def _attributes_as_they_are(out: Path, inode: int, mtime_ns: int) -> dict[str, Any] | None:
    return attributes_of(out)
