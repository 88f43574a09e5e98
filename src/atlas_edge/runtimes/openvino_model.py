"""The model behind an OpenVINO encoder: read when it is compiled, and not held in between."""

from pathlib import Path
from typing import Any

from atlas_edge.errors import InputError
from atlas_edge.system.heap import give_back_freed, give_back_mapped
from atlas_edge.system.stamp import Stamp, stamp


class ModelSource:
    """Gives a model each time that it is compiled.

    Held open, the weights of a file would stay in memory beside those that the plugin has packed for its kernels, and
    Windows neither renames nor removes the file meanwhile.

    Args:
        core: `openvino.Core`.
        model: File (`.xml` or `.onnx`), or a model in memory, which is copied.

    Raises:
        InputError: The file is not a model that OpenVINO can read.
    """

    def __init__(self, core: Any, model: Any) -> None:
        self._core = core
        self._path = Path(model) if isinstance(model, str | Path) else None
        self._seen = _stamps(self._path)
        self.first: Any = model.clone() if self._path is None else _read(core, self._path)
        """The model as it was first read; None once a file's has been taken."""

    def compiled(self) -> None:
        """Say that what was taken is compiled: what of it the plugin holds on to is packed by now."""
        if self._path is not None:
            give_back_mapped(self._path.parent)
        give_back_freed()

    def take(self) -> Any:
        """A model that may be changed.

        Raises:
            InputError: The file is another one now.
        """
        if self._path is None:
            return self.first.clone()
        model, self.first = self.first, None
        if model is not None:
            return model
        if _stamps(self._path) != self._seen:
            raise InputError(f"{self._path} was changed after it was opened", hint="open the bundle again")
        return _read(self._core, self._path)


def _stamps(path: Path | None) -> dict[str, Stamp]:
    """Of the file, and of those beside it that hold its weights."""
    if path is None:
        return {}
    try:
        return {file.name: stamp(file) for file in path.parent.iterdir() if file.name.startswith(path.stem)}
    except OSError:
        return {}


def _read(core: Any, path: Path) -> Any:
    try:
        return core.read_model(str(path))
    except Exception as error:  # its front ends raise anything
        raise InputError(
            f"{path}: OpenVINO cannot read it: {' '.join(str(error).split())}",
            hint="export the bundle again with this version of openvino",
        ) from error
