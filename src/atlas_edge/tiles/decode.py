"""From an encoded image to `(H, W, 3)` uint8 RGB, refusing what cannot be RGB without guessing."""

import io
import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from atlas_edge.errors import InputError

MAX_TILE_PIXELS = 16_777_216  # 4096 x 4096: anything larger is a slide, or a decompression bomb
MAX_TILE_BYTES = 64 * 2**20
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})

# Pillow's raw modes of 16 bits a channel; BMP's BGR;16 has 5 or 6.
_RAW_16_BIT = re.compile(r";16[BLNS]")
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")


def decode_tile(data: bytes, *, name: str) -> NDArray[np.uint8]:
    """Decode PNG, JPEG, TIFF, BMP or WebP bytes.

    Grey, palette and fully opaque images become RGB without loss of meaning; CMYK, 16-bit, LAB and transparent images
    are refused, because their conversion needs a profile or a background that nobody gave.

    Args:
        data: The encoded file.
        name: How an error calls the tile.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        InputError: Not an image, truncated, too large, or not RGB in meaning.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_TILE_PIXELS:
                raise _too_large(name, f"{image.width} x {image.height} px")
            return np.array(_as_rgb(image, name), dtype=np.uint8)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "a decompression bomb") from error
    except Exception as error:  # of a damaged file Pillow raises almost anything
        reason = "no PNG, JPEG, TIFF, BMP or WebP image" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"tile {name} cannot be decoded: {reason}", hint="copy the file again, or take it out of the tile set"
        ) from error


def is_image_name(name: str) -> bool:
    """Whether a file name ends as one of the image forms and is not hidden."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if _is_16_bit(image):
        raise _stored_as(name, "16-bit")
    if image.mode == "RGB":
        return image
    if image.mode in {"L", "1"}:
        return image.convert("RGB")
    if image.mode in {"RGBA", "LA", "P", "PA"}:
        opaque = image.convert("RGBA")
        lowest = opaque.getchannel("A").getextrema()[0]
        if lowest == 255:
            return opaque.convert("RGB")
        raise InputError(f"tile {name} has transparent pixels, expected opaque RGB", hint="flatten it on white first")
    raise _stored_as(name, image.mode)


def _is_16_bit(image: Image.Image) -> bool:
    """Whether Pillow would cut 16 bits to 8: its mode does not say so, a PNG's raw form and a TIFF's tag do."""
    if isinstance(image, TiffImageFile):
        return any(bits > 8 for bits in image.tag_v2.get(BITSPERSAMPLE, ()))
    tiles: list[Any] = getattr(image, "tile", [])
    raw = (part for _, _, _, found in tiles for part in (found if isinstance(found, tuple) else (found,)))
    return any(isinstance(part, str) and _RAW_16_BIT.search(part) for part in raw)


def _stored_as(name: str, found: str) -> InputError:
    return InputError(
        f"tile {name} is stored as {found}, expected 8-bit RGB or grey", hint="convert it to 8-bit RGB with its profile"
    )


def _too_large(name: str, found: str) -> InputError:
    return InputError(
        f"tile {name} is {found}, expected at most {MAX_TILE_PIXELS:,} pixels",
        hint="cut it into tiles (atlas-embed does)",
    )
