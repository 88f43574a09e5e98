"""A slide and its µm per pixel as the user types them."""

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from atlas_edge.errors import InputError

DEFAULT_MPP = (0.5,)
_SPEC = re.compile(r"(?P<path>.+?)(?:@(?P<mpp>[0-9.]+(?:[,-][0-9.]+)*))?")
_TILE_SETS = frozenset({".parquet", ".h5", ".hdf5", ".csv"})


@dataclass(frozen=True, slots=True)
class SlideSpec:
    """`SLIDE`, `SLIDE@MPP,MPP…` or `SLIDE@FINEST-COARSEST`.

    Attributes:
        path: The slide.
        mpps: µm per pixel of the grids: what was asked for, or the middle of each octave of a range.
        own_mpp: µm per pixel of a slide that does not say it: the finest that was asked for, None where none was.
        mpp_range: Finest and coarsest, where every µm per pixel between them is wanted.
    """

    path: Path
    mpps: tuple[float, ...]
    own_mpp: float | None = None
    mpp_range: tuple[float, float] | None = None

    def drawn_mpp(self, middle: float, name: str) -> float:
        """µm per pixel of a tile of a range: log-uniform over its octave, a function of its name alone."""
        if self.mpp_range is None:
            return middle
        half_octave = math.log(self.mpp_range[1] / self.mpp_range[0]) / len(self.mpps) / 2
        drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") / 2**64
        return middle * math.exp(half_octave * (2 * drawn - 1))


def slide_spec(spec: str) -> SlideSpec | None:
    """Read `scan.svs`, `scan.svs@0.5,1` or `scan.svs@0.25-2`; None where that is no slide's file but, say, a folder.

    Raises:
        InputError: A µm per pixel that is no number above 0, or a range that does not go from fine to coarse.
    """
    found = _SPEC.fullmatch(spec)
    if found is None or not (path := Path(found["path"])).is_file() or path.suffix.lower() in _TILE_SETS:
        return None
    if found["mpp"] is None:
        return SlideSpec(path, DEFAULT_MPP)
    finest, dash, coarsest = found["mpp"].partition("-")
    try:
        given = tuple(float(part) for part in ((finest, coarsest) if dash else finest.split(",")))
    except ValueError:
        given = (0.0,)
    if min(given) <= 0 or (dash and not given[0] < given[-1]):
        raise InputError(
            f"{spec}: {found['mpp']} is no µm per pixel", hint=f"give {path}@0.5, {path}@0.5,1,2 or {path}@0.25-2"
        )
    from atlas_edge.slides.mpp import is_plausible

    own_mpp = min(given) if is_plausible(min(given)) else None
    if not dash:
        return SlideSpec(path, given, own_mpp=own_mpp)
    octaves = max(round(math.log2(given[1] / given[0])), 1)
    step = (given[1] / given[0]) ** (1 / octaves)
    middles = tuple(given[0] * step ** (number + 0.5) for number in range(octaves))
    return SlideSpec(path, middles, own_mpp=own_mpp, mpp_range=(given[0], given[1]))
