"""The edge to the libraries that read slides: they raise anything on a damaged file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atlas_edge.errors import AtlasError, InputError

_MOST_CHARACTERS = 200


@contextmanager
def foreign_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises into an InputError of one line that begins with `what`.

    Raises:
        InputError: See above; errors of our own pass.
    """
    try:
        yield
    except AtlasError:
        raise
    # Forged counts and sizes run out of memory, too: an allocation that is refused leaves everything as it was.
    except Exception as error:
        raise InputError(f"{what}: {one_line(error)}", hint="copy the slide again") from error


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and not too long; its kind where it says nothing."""
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:_MOST_CHARACTERS]


def open_tiff(path: Path) -> Any:
    """A file as tifffile opens it, without log and warnings of what it finds: that reaches us as an exception."""
    import tifffile

    warnings.filterwarnings("ignore", module="tifffile")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile.TiffFile(path)
