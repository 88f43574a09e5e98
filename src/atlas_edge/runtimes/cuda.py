"""The few CUDA calls that an engine needs: memory, streams, copies, graphs. Everything is freed, also after a fault."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import RuntimeMissing

_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no waiting for the default stream.
_HINT_MEMORY = (
    "end other programs on the GPU, or rebuild with a smaller batch: atlas-export rebuild BUNDLE --batch 1,8,16"
)
_HINT_FAULT = "start the program again; if it recurs, run atlas-bench selftest BUNDLE and report what it writes"


class DeviceFault(RuntimeMissing):
    """The GPU failed or ran out of memory; what was allocated on it has been freed."""


class Cuda:
    """Owns what it allocates on one device.

    Args:
        cudart: The module `cuda.bindings.runtime`. Its functions return a tuple that begins with the status.
        device: Index of the GPU.
    """

    def __init__(self, cudart: Any, device: int = 0) -> None:
        self._cudart = cudart
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._streams: list[Any] = []
        self._graphs: list[Any] = []
        self.index = device
        self.use()

    @classmethod
    def open(cls, device: int = 0) -> "Cuda":
        """Load CUDA's Python bindings.

        Raises:
            RuntimeMissing: They are not installed.
            DeviceFault: The device cannot be used.
        """
        try:
            from cuda.bindings import runtime
        except (ImportError, RuntimeError) as error:
            raise RuntimeMissing(
                f"cuda-bindings cannot be loaded: {' '.join(str(error).split())}",
                hint="pip install 'atlas-edge[tensorrt-rtx]'",
            ) from error
        return cls(runtime, device)

    def use(self) -> None:
        """Make this the device of the calling thread, which begins with device 0."""
        self._call("cudaSetDevice", self.index)

    def device_memory(self, size_bytes: int) -> int:
        """Allocate on the GPU; returns the address."""
        address = int(self._call("cudaMalloc", size_bytes))
        self._device.append(address)
        return address

    def pinned_array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Host memory that the GPU copies from and to without a detour, as an array. Valid until `close`."""
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._call("cudaHostAlloc", size_bytes, 0))
        self._pinned.append(address)
        buffer = (ctypes.c_uint8 * size_bytes).from_address(address)
        return np.frombuffer(buffer, dtype=dtype).reshape(shape)

    def stream(self) -> Any:
        """A new stream, independent of the default one."""
        stream = self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)
        self._streams.append(stream)
        return stream

    def copy_to_device(self, address: int, host: NDArray[Any], stream: Any) -> None:
        """Queue a copy of a pinned, contiguous array to the GPU."""
        self._copy(address, host.ctypes.data, host.nbytes, "cudaMemcpyHostToDevice", stream)

    def copy_to_host(self, host: NDArray[Any], address: int, stream: Any) -> None:
        """Queue a copy from the GPU into a pinned, contiguous array."""
        self._copy(host.ctypes.data, address, host.nbytes, "cudaMemcpyDeviceToHost", stream)

    def wait(self, stream: Any) -> None:
        """Wait until everything queued on a stream is done. Faults of the work show here."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """Record what `work` queues on a stream, without running it, as a graph for `launch`."""
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            # The stream must leave capture mode, whatever the status of the broken graph.
            self._cudart.cudaStreamEndCapture(stream)
            self._cudart.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            launchable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._cudart.cudaGraphDestroy(graph)
        self._graphs.append(launchable)
        return launchable

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def wait_all(self) -> None:
        """Let all streams run dry, before what they use is destroyed. Unchecked: it is a step of closing."""
        for stream in self._streams:
            self._cudart.cudaStreamSynchronize(stream)

    def close(self) -> None:
        """Free everything. After a fault the calls may fail, too: each is made, none is checked."""
        self._cudart.cudaSetDevice(self.index)
        self.wait_all()
        for name, owned in (
            ("cudaGraphExecDestroy", self._graphs),
            ("cudaStreamDestroy", self._streams),
            ("cudaFree", self._device),
            ("cudaFreeHost", self._pinned),
        ):
            free = getattr(self._cudart, name)
            while owned:
                free(owned.pop())

    @contextlib.contextmanager
    def freed_on_fault(self) -> Iterator[None]:
        """Free everything where the block raises."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _copy(self, to: int, source: int, size_bytes: int, kind: str, stream: Any) -> None:
        direction = getattr(self._cudart.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", to, source, size_bytes, direction, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cudart, name)(*arguments)
        if int(status) != 0:
            raise self._fault(name, status, arguments)
        return values[0] if values else None

    def _fault(self, name: str, status: Any, arguments: tuple[Any, ...]) -> DeviceFault:
        if int(status) == _OUT_OF_MEMORY:
            size = f" of {arguments[0] / 1e6:.0f} MB" if name in {"cudaMalloc", "cudaHostAlloc"} else ""
            return DeviceFault(f"the GPU is out of memory ({name}{size})", hint=_HINT_MEMORY)
        _, text = self._cudart.cudaGetErrorString(status)
        said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        return DeviceFault(f"the GPU failed in {name}: {said} (CUDA error {int(status)})", hint=_HINT_FAULT)
