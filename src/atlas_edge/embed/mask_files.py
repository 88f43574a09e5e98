"""Which mask belongs to which slide."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from atlas_edge.embed.config import EmbedConfig, SlideFacts
from atlas_edge.embed.slide_files import slide_stem
from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides.tissue.given import AREA_SUFFIXES, PICTURE_SUFFIXES
from atlas_edge.system.paths import printable

_SUFFIXES = (*AREA_SUFFIXES, *PICTURE_SUFFIXES)
_OWN_SUFFIX = ".mask.png"
_MOST_LISTED = 5


def with_masks(
    jobs: list[tuple[Path, Path]], given: Path | None, facts: dict[Path, SlideFacts] | None, config: EmbedConfig
) -> dict[Path, SlideFacts] | None:
    """What holds for single slides, the mask of each among it.

    Args:
        jobs: Slides and outputs.
        given: See `masks_of`; None where tissue is looked for.
        facts: What holds for single slides otherwise.
        config: What holds for all.

    Raises:
        UsageError: Other options say where tissue is, too; see also `masks_of`.
        InputError: See `masks_of`.
    """
    if given is None:
        return facts
    for option, is_given in (("--no-tissue", not config.tissue), (f"--stain {config.stain}", config.stain is not None)):
        if is_given:
            raise UsageError(f"--mask says where tissue is, {option} how to look for it", hint="leave one of them out")
    masks = masks_of([slide for slide, _ in jobs], given)
    return {slide: replace((facts or {}).get(slide, SlideFacts()), mask=mask) for slide, mask in masks.items()}


def masks_of(slides: Sequence[Path], given: Path) -> dict[Path, Path]:
    """The mask of each slide: `given` itself for a single one, or a file of the slide's name in that folder.

    Args:
        slides: Slides.
        given: A mask, or a folder with `STEM.geojson`, `STEM.png` or `STEM.tif` of each slide, or else the
            `STEM.mask.png` that an earlier run has written.

    Raises:
        UsageError: One mask for several slides.
        InputError: There is none, a slide has none, or has several.
    """
    if not given.exists():
        raise InputError(f"{printable(given)} does not exist, expected a mask", hint="check the path of --mask")
    if not given.is_dir():
        if len(slides) > 1:
            raise UsageError(
                f"{printable(given)} is one mask, {len(slides)} slides are named",
                hint="give a folder with a mask of each slide's name",
            )
        return {slide: given for slide in slides}
    found = {slide: _masks_in(given, slide) for slide in slides}
    lacking = [slide for slide, masks in found.items() if not masks]
    if lacking:
        names = ", ".join(printable(slide.name) for slide in lacking[:_MOST_LISTED])
        more = f" and {len(lacking) - _MOST_LISTED} more" if len(lacking) > _MOST_LISTED else ""
        raise InputError(
            f"{printable(given)} holds no mask of {names}{more}",
            hint=f"put {slide_stem(lacking[0])}.geojson (or .png, .tif) there",
        )
    for masks in found.values():
        if len(masks) > 1:
            both = " and ".join(printable(mask.name) for mask in masks)
            raise InputError(f"{printable(given)} holds {both} of one slide", hint="keep one of them")
    return {slide: masks[0] for slide, masks in found.items()}


def _masks_in(folder: Path, slide: Path) -> list[Path]:
    places = [folder / f"{slide_stem(slide)}{suffix}" for suffix in _SUFFIXES]
    found = [place for place in places if place.is_file() and place.absolute() != slide.absolute()]
    own = folder / f"{slide_stem(slide)}{_OWN_SUFFIX}"
    return found or [own] * own.is_file()
