"""Errors of other libraries, as ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from atlas_edge.errors import AtlasError, InputError


@contextmanager
def foreign_errors(
    what: str, *, hint: str = "choose --precision fp16 or fp32, and report the network"
) -> Iterator[None]:
    """Turn what a quantizer or exporter raises for a network that it does not know into an `InputError`.

    They raise anything: `RuntimeError`, `AssertionError`, `KeyError`. A full disk or memory stays what it is.

    Args:
        what: What could not be done, with the name of the part.
        hint: What mends it.

    Raises:
        InputError: Something was raised.
    """
    try:
        yield
    except (AtlasError, OSError, MemoryError):
        raise
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(f"{what}: {type(error).__name__}: {said[:200]}".rstrip(": "), hint=hint) from error
