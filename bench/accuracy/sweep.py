"""Shifts by strength: where an encoder, or what was made of it, begins to move."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from atlas_edge.bench.accuracy.stress import Shift
from atlas_edge.tiles.shifts import SCANNERS, as_scanner, blur, magnify, recompress, shift_hed

# Our choice of steps. Magnification goes from half to twice the tile's µm per pixel, in steps between those that
# scanners have; quality 90 and 70 are what scanners write.
SWEEP: Mapping[str, Shift] = MappingProxyType(
    {
        **{
            f"µm per pixel x {factor:g}": partial(magnify, factor=factor) for factor in (0.5, 0.71, 0.84, 1.19, 1.41, 2)
        },
        **{f"scanner {name}": partial(as_scanner, scanner=name) for name in SCANNERS},
        **{f"haematoxylin x {gain:g}": partial(shift_hed, haematoxylin=gain) for gain in (0.7, 0.85, 1.15, 1.3)},
        **{f"eosin x {gain:g}": partial(shift_hed, eosin=gain) for gain in (0.7, 0.85, 1.15, 1.3)},
        **{f"JPEG quality {quality}": partial(recompress, quality=quality) for quality in (90, 70, 50, 30)},
        **{f"blur {radius:g} px": partial(blur, radius_px=radius) for radius in (0.5, 1.0, 2.0)},
    }
)
