"""µm per pixel: what a file says, and what the user says."""

import re

from atlas_edge.errors import InputError, UsageError
from atlas_edge.slides.slide import Slide

MPP_RANGE = (0.05, 20.0)
"""µm per pixel that a scanner could have: a file that says 352.8 (72 dpi) says nothing."""

_DESCRIBED = re.compile(r"\bMPP\s*[=:]\s*([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)


def settle_mpp(slide: Slide, given: float | None, *, override: bool, said_by: str = "--mpp") -> None:
    """Set a slide's µm per pixel, and who said it.

    Args:
        slide: With its `stated_mpp`.
        given: By the user; for a slide that says nothing a scanner could have.
        override: `given` holds for any slide.
        said_by: Where the user gave it.

    Raises:
        InputError: Nobody says it.
        UsageError: `given` is no scanner's.
    """
    low, high = MPP_RANGE
    if given is not None and not low <= given <= high:
        raise UsageError(f"--mpp {given} is out of range, expected {low} to {high} µm per pixel", hint="try --mpp 0.25")
    x, y = slide.stated_mpp
    if x is not None and y is not None and is_plausible(x) and is_plausible(y) and not (override and given):
        slide.mpp_x, slide.mpp_y, slide.mpp_source = x, y, "slide"
    elif given is not None:
        slide.mpp_x, slide.mpp_y, slide.mpp_source = given, given, said_by
    else:
        said = "does not say" if x is None else f"says {x:g}, which is no scanner's,"
        raise InputError(
            f"{slide.path} {said} how many µm a pixel is", hint="add --mpp VALUE (0.25 for most 40x scans, 0.5 for 20x)"
        )


def is_plausible(mpp: float | None) -> bool:
    """Whether a scanner could have it."""
    return mpp is not None and MPP_RANGE[0] <= mpp <= MPP_RANGE[1]


def described_mpp(description: str | None) -> float | None:
    """What a TIFF's description says as `MPP = 0.257290` (Motic and others, after Aperio), None where it does not."""
    found = _DESCRIBED.search(description or "")
    return float(found[1]) if found and is_plausible(float(found[1])) else None
