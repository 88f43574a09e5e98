"""The error tree.

```
AtlasError                   1   a bug: anything that is not one of the below
├── UsageError               2   an unknown option, a value out of range, a configuration that contradicts itself
├── GateFailed               3   an accuracy budget is missed, or the interval straddles it (files are kept)
├── RuntimeMissing           4   a device, driver or runtime that the job needs is not here
└── InputError               5   a missing or corrupt file, a wrong size, a checksum that does not match
    ├── ChecksumError        5
    └── NoTissue             5   a whole slide with nothing on it: beside other slides a result, not a fault
```

An interrupt (Ctrl-C) exits 130. Every message says what was found, what was expected, and what mends it.
"""

from typing import ClassVar


class AtlasError(Exception):
    """Base of every error that atlas-edge raises on purpose.

    Args:
        message: What was found and what was expected, in one line.
        hint: The command or option that mends it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  fix: {self.hint}"


class UsageError(AtlasError):
    """The command line, environment or `atlas.toml` asks for something that cannot be."""

    exit_code = 2


class GateFailed(AtlasError):
    """An accuracy budget is missed or undecided. What was built is kept."""

    exit_code = 3


class RuntimeMissing(AtlasError):
    """A device, driver or runtime that the job needs is not on this machine."""

    exit_code = 4


class InputError(AtlasError):
    """A file is missing, unreadable, truncated, of the wrong size or of the wrong form."""

    exit_code = 5


class ChecksumError(InputError):
    """A file's SHA-256 or size differs from the one in the manifest."""


class NoTissue(InputError):
    """A slide can be read and has no tissue: there is nothing to embed, and nothing to try again."""
