"""From an encoded image to `(H, W, 3)` uint8 RGB, refusing what cannot be RGB without guessing."""

import io
import struct
import zlib
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from atlas_edge.errors import InputError

MAX_TILE_PIXELS = 16_777_216  # 4096 x 4096: anything larger is a slide, or a decompression bomb
MAX_TILE_BYTES = 64 * 2**20
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})

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
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "a decompression bomb") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        reason = "no PNG, JPEG, TIFF, BMP or WebP image" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"tile {name} cannot be decoded: {reason}", hint="copy the file again, or take it out of the tile set"
        ) from error


def is_image_name(name: str) -> bool:
    """Whether a file name ends as one of the image forms and is not hidden."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
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
    raise InputError(
        f"tile {name} is stored as {image.mode}, expected 8-bit RGB or grey", hint="convert it to RGB with its profile"
    )


def _too_large(name: str, found: str) -> InputError:
    return InputError(
        f"tile {name} is {found}, expected at most {MAX_TILE_PIXELS:,} pixels",
        hint="cut it into tiles (atlas-embed does)",
    )
