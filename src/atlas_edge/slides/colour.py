"""Colours of a scanner as sRGB, by the ICC profile that its slides hold."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.slides.readers.foreign import one_line

Pixels = NDArray[np.uint8]


def to_srgb(profile: bytes, path: Path) -> Callable[[Pixels], Pixels]:
    """What turns a slide's pixels, `(…, W, 3)` uint8, into sRGB, by the profile's own rendering intent.

    As OpenSlide's documentation does it for `color_profile`. May be called from several threads.

    Args:
        profile: ICC profile as it lies in the file.
        path: Of the slide, for the error.

    Raises:
        InputError: It is damaged, or speaks of other colours than RGB.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            renderingIntent=ImageCms.Intent(ImageCms.getDefaultIntent(source)),
        )
    except Exception as error:  # the library raises what it likes on a damaged profile
        raise InputError(
            f"{path}: its ICC profile cannot be applied: {one_line(error)}", hint="leave --icc out"
        ) from error

    def converted(pixels: Pixels) -> Pixels:
        if not pixels.size:
            return pixels
        rows = Image.fromarray(pixels.reshape(-1, *pixels.shape[-2:]))
        return np.asarray(ImageCms.applyTransform(rows, transform)).reshape(pixels.shape)

    return converted
