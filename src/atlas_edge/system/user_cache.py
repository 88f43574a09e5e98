"""Where this user's programs keep what can be made again."""

import os
import sys
from pathlib import Path


def user_cache() -> Path:
    """Our folder in the user's cache: `%LOCALAPPDATA%`, `~/Library/Caches` or `~/.cache`; nothing is made."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(_home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(_home() / "Library" / "Caches")
    else:
        named = os.environ.get("XDG_CACHE_HOME", "")
        # The specification has a relative one ignored.
        base = named if Path(named).is_absolute() else str(_home() / ".cache")
    return Path(base) / "atlas-edge"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        # A container's user without a home: what lies below a file cannot be written, as below a home of root's.
        return Path(os.devnull)
