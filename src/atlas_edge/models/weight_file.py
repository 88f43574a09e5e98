"""The weights of an ONNX graph in a file beside it, written one by one: a large network is never in memory twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import onnx

# Shapes and scalars stay in the graph, where shape inference reads them.
_SMALLEST_BESIDE = 1024
_PIECE_BYTES = 1 << 24


class WeightFile:
    """`<graph>.data`, from `weight_file`."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def take(self, tensor: "onnx.TensorProto", *, folder: Path | None = None) -> None:
        """Move the values of a tensor into the file, unless they are few.

        Args:
            tensor: It says where its values lie afterwards.
            folder: Of the file in which they lie now, where they are not in memory.
        """
        import onnx
        from onnx.external_data_helper import load_external_data_for_tensor, set_external_data, uses_external_data

        size, offset = bytes_of(tensor), self._file.tell()
        if size < _SMALLEST_BESIDE:
            if uses_external_data(tensor):
                load_external_data_for_tensor(tensor, str(folder))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
            return
        if uses_external_data(tensor):
            assert folder is not None, tensor.name
            self._copy(tensor, folder, size)
            tensor.raw_data = b""  # else the library refuses to say that they lie elsewhere
        else:
            if not tensor.HasField("raw_data"):  # stored value by value
                tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
            self._file.write(tensor.raw_data)
        set_external_data(tensor, self._name, offset, size)
        tensor.ClearField("raw_data")

    def _copy(self, tensor: "onnx.TensorProto", folder: Path, size: int) -> None:
        from onnx.external_data_helper import ExternalDataInfo

        place = ExternalDataInfo(tensor)
        with (folder / place.location).open("rb") as source:
            source.seek(place.offset or 0)
            while size > 0:
                piece = source.read(min(size, _PIECE_BYTES))
                if not piece:
                    raise EOFError(f"{folder / place.location} ends within {tensor.name}")
                size -= self._file.write(piece)


@contextmanager
def weight_file(graph: Path) -> Iterator[WeightFile]:
    """Write the weights of a graph; an older file is replaced when all are written.

    Raises:
        OSError: With the path, also where the disk is full.
    """
    beside, written = graph.with_name(f"{graph.name}.data"), graph.with_name(f"{graph.name}.data.new")
    try:
        with named_errors(beside), written.open("wb") as file:
            yield WeightFile(file, beside.name)
        written.replace(beside)
    finally:
        written.unlink(missing_ok=True)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give errors that name no file the path that is written: those of a full disk have none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def bytes_of(tensor: "onnx.TensorProto") -> int:
    """Bytes of a tensor's values, wherever they lie."""
    import math

    import numpy as np
    import onnx

    kind: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(math.prod(tensor.dims)) * kind.itemsize
