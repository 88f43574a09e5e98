"""What leaves the hospital with a bundle or report: no path, as studies and their files are named after patients."""

import os
from collections.abc import Iterator
from pathlib import Path

from atlas_edge.manifest import TilesProvenance

LEFT_OUT = "…"
_HUB = "hf-hub:"
_PATHS = {
    "--budgets", "--calib", "--eval", "--fit", "--out", "--plan", "--recipe", "--report", "--timing-cache",
}  # fmt: skip


def command_without_paths(command: tuple[str, ...]) -> tuple[str, ...]:
    """A command line with `…` for whatever names a file or folder."""
    return command[:1] + tuple(_shown(command[1:]))


def last_name(name: str) -> str:
    """A model or tile set as it was named; of a path its last name only."""
    return name if name.startswith(_HUB) else Path(name).name


def tile_number(index: int, count: int) -> str:
    """What a tile is called where its name stays at home: its place among those that were looked at."""
    return f"tile {index + 1} of {count}"


def class_numbers(classes: tuple[str, ...]) -> tuple[str, ...]:
    """What classes are called where their names stay at home: a folder of tiles may be called by its patient."""
    return tuple(f"class {number}" for number in range(1, len(classes) + 1))


def unnamed_tiles(tiles: TilesProvenance | None) -> TilesProvenance | None:
    """Which tiles were used, by kind and fingerprint only; synthetic ones keep their name, which is their recipe."""
    if tiles is None or tiles.synthetic:
        return tiles
    return tiles.model_copy(update={"name": f"{tiles.kind} {tiles.fingerprint[:8]}"})


def _shown(arguments: tuple[str, ...]) -> Iterator[str]:
    follows_path_option = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if argument.startswith("-"):
            yield f"{option}={LEFT_OUT}" if equals and (option in _PATHS or _is_path(value)) else argument
        else:
            yield LEFT_OUT if follows_path_option or _is_path(argument) else argument
        follows_path_option = argument in _PATHS


def _is_path(text: str) -> bool:
    return not text.startswith(_HUB) and ("/" in text or "\\" in text or os.path.exists(text))  # noqa: PTH110 - a Path raises where a text is too long for a name
