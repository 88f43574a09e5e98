"""A picture of the tiles that calibrate, so that a person can judge them."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_edge.system.atomic import write_atomic

if TYPE_CHECKING:
    from atlas_edge.quantize.tiles.choose import CalibrationChoice

THUMBNAIL_PX = 96
COLUMNS = 16
MOST_TILES = 320

_LINE_PX = 18
_MARGIN_PX = 6


def write_contact_sheet(choice: "CalibrationChoice", path: Path, *, title: str) -> int:
    """Write the chosen tiles as a PNG, one band for each value of the first field, sorted by the others.

    Args:
        choice: What was chosen.
        path: PNG to write.
        title: First line.

    Returns:
        How many tiles are on it: the first 320 chosen at most.
    """
    import io

    from PIL import Image, ImageDraw

    shown = min(len(choice.records), MOST_TILES)
    bands: dict[str, list[int]] = {}
    for index in sorted(range(shown), key=lambda index: choice.strata[index]):
        bands.setdefault((*choice.strata[index], "all")[0], []).append(index)
    rows = sum(math.ceil(len(members) / COLUMNS) for members in bands.values())
    height = _LINE_PX * (len(bands) + 1) + THUMBNAIL_PX * rows + 2 * _MARGIN_PX
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL_PX + 2 * _MARGIN_PX, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN_PX, _MARGIN_PX), title, fill="black")
    top = _MARGIN_PX + _LINE_PX
    for name, members in bands.items():
        draw.text((_MARGIN_PX, top + 3), f"{name}: {len(members)}", fill="black")
        top += _LINE_PX
        for position, index in enumerate(members):
            row, column = divmod(position, COLUMNS)
            thumbnail = Image.fromarray(choice.pixels[index]).resize((THUMBNAIL_PX - 2, THUMBNAIL_PX - 2))
            sheet.paste(thumbnail, (_MARGIN_PX + column * THUMBNAIL_PX, top + row * THUMBNAIL_PX))
        top += THUMBNAIL_PX * math.ceil(len(members) / COLUMNS)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
    return shown
