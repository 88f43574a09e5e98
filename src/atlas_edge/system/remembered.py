"""The hash of a large file, computed once and remembered for as long as nothing has touched the file."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from atlas_edge.system.atomic import write_atomic
from atlas_edge.system.stamp import stamp
from atlas_edge.system.user_cache import user_cache

SMALLEST_BYTES = 1 << 20
# What was written a moment ago may be written again within the same tick of the file system's clock.
_SETTLED_NS = 2 * 10**9


def remembered_sha256(path: Path, compute: Callable[[Path], str]) -> str:
    """A file's SHA-256: what it was when it was last computed, if the file's stamp is still the same, else `compute`.

    Small files, and those written less than two seconds ago, are hashed each time. What is remembered lies in the
    user's own cache (`user_cache`), a file a path; it is not looked at where it belongs to another user.

    Args:
        path: The file.
        compute: Reads it.

    Raises:
        OSError: It cannot be read.
    """
    seen = stamp(path)
    if seen.size_bytes < SMALLEST_BYTES:
        return compute(path)
    place = user_cache() / "hashes" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    known = _recall(place)
    if known is not None and known.get("stamp") == asdict(seen) and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    found = compute(path)
    # Had it been written meanwhile, the hash could be of either.
    if stamp(path) == seen and time.time_ns() - max(seen.mtime_ns, seen.ctime_ns) > _SETTLED_NS:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(place, json.dumps({"stamp": asdict(seen), "sha256": found}).encode())
    return found


def _recall(place: Path) -> dict[str, object] | None:
    try:
        if hasattr(os, "getuid") and place.stat().st_uid != os.getuid():
            return None
        known = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) else None
