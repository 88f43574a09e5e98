"""A slide tried in a process of its own first: OpenSlide ends the process on sizes and counts that cannot be."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from atlas_edge.errors import InputError
from atlas_edge.system.child import run_module

_MOST_CPU_S = 8  # opening takes a fraction of a second; a share that is slow takes no processor
_MOST_IDLE_CPU_S = 1  # where there is nothing to read
_MOST_S = 120
_PIECE_PX, _FAR_PX = 64, 10_000_000
_BEGUN, _DONE = "begun", "done"
_STOPPED = (-signal.SIGTERM, -signal.SIGINT)


def probe(path: Path) -> None:
    """See to it that OpenSlide opens a slide, and reads pieces of each level, or says why not.

    Where no such process can begin, as in a frozen program, or it is stopped from outside, nothing is known.

    Raises:
        InputError: The process ended, or took too long.
    """
    try:
        child = run_module(__name__, stdin=os.fsencode(path).hex(), timeout_s=_MOST_S)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{path} cannot be opened in {_MOST_S} s", hint="look whether its disk or share answers"
        ) from None
    said = child.stdout.splitlines()
    if _BEGUN in said and _DONE not in said and child.returncode not in _STOPPED:
        raise InputError(
            f"{path} is damaged: what it says of itself ends OpenSlide (exit code {child.returncode}), "
            "or keeps it busy",
            hint="copy the slide again",
        )


def _main() -> None:
    import openslide  # noqa: F401 - where it is not installed nothing begins

    path = Path(os.fsdecode(bytes.fromhex(sys.stdin.read())))
    print(_BEGUN, flush=True)
    # What can be said is said by whoever opens it next.
    with contextlib.suppress(Exception):
        _read_pieces(path)
    print(_DONE)


def _read_pieces(path: Path) -> None:
    import openslide

    _allow(_MOST_CPU_S)
    slide = openslide.OpenSlide(path)
    levels = list(zip(range(slide.level_count), slide.level_downsamples, slide.level_dimensions, strict=True))
    # OpenSlide looks for tiles as far off as one of them says that it lies.
    nothing = [(level, (far, far)) for level, *_ in levels for far in (_FAR_PX, -_FAR_PX)]
    middles = [(level, (round(size[0] // 2 * down), round(size[1] // 2 * down))) for level, down, size in levels]
    for cpu_s, places in ((_MOST_IDLE_CPU_S, nothing), (_MOST_CPU_S, middles)):
        _allow(cpu_s)
        for level, place in places:
            try:
                slide.read_region(place, level, (_PIECE_PX, _PIECE_PX))
            except openslide.OpenSlideError:
                slide = openslide.OpenSlide(path)  # it refuses every read after one that failed


def _allow(cpu_s: int) -> None:
    """Let the process end when it has used so much more of the processor."""
    if sys.platform != "win32":  # which has the time-out only
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used_s = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used_s + cpu_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    _main()
