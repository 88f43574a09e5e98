"""What leaves the hospital with a bundle: no path, since folders and files of a study are named after its patients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atlas_edge.export.config import ExportConfig
from atlas_edge.manifest import TilesProvenance

LEFT_OUT = "…"
_HUB = "hf-hub:"
_PATHS = {"--calib", "--eval", "--out", "--plan", "--recipe", "--timing-cache"}


def command_without_paths(command: tuple[str, ...]) -> tuple[str, ...]:
    """A command line with `…` for whatever names a file or folder."""
    return command[:1] + tuple(_shown(command[1:]))


def config_for_manifest(config: ExportConfig) -> dict[str, Any]:
    """The resolved options; paths as names of what was given, unless `keep_paths`."""
    options = config.model_dump(mode="json", exclude={"out", "overwrite"})
    if not config.keep_paths:
        options |= {name: LEFT_OUT for name in ("calib", "eval", "timing_cache") if options[name] is not None}
        if not config.model.startswith(_HUB):
            options["model"] = Path(config.model).name
    return options


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
    return not text.startswith(_HUB) and ("/" in text or "\\" in text or Path(text).exists())
