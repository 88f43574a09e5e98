"""The worst tiles as pictures inside the page."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from atlas_edge.bench.accuracy.measure import AccuracyReport
from atlas_edge.bench.accuracy.tileset import TileSet

_SIDE_PX = 160
_JPEG_QUALITY = 88


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstTile:
    """One tile: its id, label, cosine to the reference, and a JPEG as a data URI."""

    id: str
    label: str
    cosine: str
    picture: str


def worst_tiles(accuracy: AccuracyReport, evaluation: TileSet, *, labels: bool) -> dict[str, tuple[WorstTile, ...]]:
    """Candidate -> its tiles that agree least with the reference, worst first; decoded again."""
    found = {}
    for label, candidate in accuracy.candidates.items():
        agreement = candidate.agreement
        if agreement is None or agreement.identical:
            continue
        found[label] = tuple(
            _picture(evaluation, index, name, cosine, label=labels)
            for index, name, cosine in zip(agreement.worst, candidate.worst_tiles, agreement.worst_cosines, strict=True)
        )
    return found


def _picture(evaluation: TileSet, index: int, name: str, cosine: float, *, label: bool) -> WorstTile:
    record = evaluation.records[index]
    image = Image.fromarray(evaluation.source.read(record))
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return WorstTile(
        id=name,
        label=(record.label or "") if label else "",
        cosine=f"{cosine:.4f}",
        picture=f"data:image/jpeg;base64,{data}",
    )
