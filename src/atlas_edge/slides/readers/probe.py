"""A slide tried in a process of its own first: OpenSlide ends the process on sizes and counts that cannot be."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from atlas_edge.errors import InputError
from atlas_edge.system.child import run_module

_MOST_CPU_S = 15  # opening takes a fraction of a second; a share that is slow takes no processor
_MOST_S = 120
_PIECE_PX = 64
_BEGUN, _DONE = "begun", "done"
_STOPPED = (-signal.SIGTERM, -signal.SIGINT)


def probe(path: Path) -> None:
    """See to it that OpenSlide opens a slide, and reads a piece of each level, or says why not.

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
    import openslide

    if sys.platform != "win32":  # which has the time-out only
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_MOST_CPU_S, _MOST_CPU_S + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = Path(os.fsdecode(bytes.fromhex(sys.stdin.read())))
    print(_BEGUN, flush=True)
    # What can be said is said by whoever opens it next.
    with contextlib.suppress(Exception), openslide.OpenSlide(path) as slide:
        for level, (width, height) in enumerate(slide.level_dimensions):
            down = slide.level_downsamples[level]
            place = (round(width // 2 * down), round(height // 2 * down))
            with contextlib.suppress(openslide.OpenSlideError):
                slide.read_region(place, level, (_PIECE_PX, _PIECE_PX))
    print(_DONE)


if __name__ == "__main__":
    _main()
