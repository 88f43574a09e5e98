"""What OME-XML says of the images in a TIFF."""

import math
import re
from dataclasses import dataclass
from xml.etree import ElementTree

_UM = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "Å": 1e-4, "pm": 1e-6,
    "in": 25_400.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OmeImage:
    """One image of OME-XML.

    Attributes:
        name: Such as `label` or `macro`; often empty.
        width: Pixels, as `height`.
        height: See `width`.
        mpp: µm per pixel across and downwards; None where it is not said, or not in a unit of length.
        objective: Nominal magnification.
    """

    name: str
    width: int
    height: int
    mpp: tuple[float | None, float | None]
    objective: float | None


def ome_images(xml: str | None) -> list[OmeImage]:
    """Images in the order in which OME-XML lists them; none where it cannot be read."""
    # Expat expands internal entities: a description that declares any is not OME-XML.
    if not xml or "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        return []
    try:
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", xml))
    except (ElementTree.ParseError, ValueError):
        return []
    objectives = {element.get("ID"): element for element in root.iter() if _is(element, "Objective")}
    images = []
    for image in (element for element in root.iter() if _is(element, "Image")):
        pixels = next((element for element in image if _is(element, "Pixels")), None)
        if pixels is None:
            continue
        used = next((element.get("ID") for element in image if _is(element, "ObjectiveSettings")), None)
        x, y = (_size(pixels, axis) for axis in "XY")
        images.append(
            OmeImage(
                name=image.get("Name", ""),
                width=int(_number(pixels.get("SizeX")) or 0),
                height=int(_number(pixels.get("SizeY")) or 0),
                mpp=(x, y if y is not None else x),
                objective=_number(objectives[used].get("NominalMagnification")) if used in objectives else None,
            )
        )
    return images


def _is(element: ElementTree.Element, name: str) -> bool:
    return element.tag.rpartition("}")[2] == name


def _size(pixels: ElementTree.Element, axis: str) -> float | None:
    size = _number(pixels.get(f"PhysicalSize{axis}"))
    um = _UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return size * um if size and um else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
