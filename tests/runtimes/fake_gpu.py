"""A GPU for tests: the CUDA and TensorRT calls that the runtime makes, with their laziness and their failures.

Work queued on a stream runs when the stream is waited for and not before, so a missing wait or a buffer overwritten
too early gives wrong numbers. Addresses are checked against what was allocated.
"""

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS = 0, 1, 2, 700
INVALID_DEVICE, INVALID_HANDLE, NOT_WHILE_CAPTURING = 101, 400, 900
PX, DIM = 8, 5


class Status(int):
    """A `cudaError_t`."""


class Stream:
    def __init__(self, handle: int, device: int) -> None:
        self.handle, self.device = handle, device
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.handle

    def add(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)


class Cudart:
    """`cuda.bindings.runtime`, as far as it is used."""

    class cudaStreamCaptureMode(IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    class cudaMemcpyKind(IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    def __init__(self, *, memory_bytes: int = 1 << 30, devices: int = 1) -> None:
        self.free_bytes = memory_bytes
        self.devices = devices
        # Each thread has a device of its own, the first one until it says otherwise.
        self._of_thread = threading.local()
        self.device_of: dict[int, int] = {}
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self.broken = False
        self.break_at_wait: int | None = None
        self.fail: dict[str, int] = {}
        self.waits = 0

    @property
    def leaks(self) -> dict[str, int]:
        owned = {"device": self.device, "pinned": self.pinned, "streams": self.streams, "graphs": self.graphs}
        return {name: len(left) for name, left in owned.items() if left}

    def _enter(self, name: str) -> int:
        self.calls.append(name)
        return ILLEGAL_ADDRESS if self.broken else self.fail.get(name, SUCCESS)

    def cudaSetDevice(self, device: int) -> tuple[Status]:
        status = self._enter("cudaSetDevice")
        if not 0 <= device < self.devices:
            return (Status(INVALID_DEVICE),)
        self._of_thread.device = device
        return (Status(status),)

    @property
    def current(self) -> int:
        return getattr(self._of_thread, "device", 0)

    @property
    def capturing(self) -> bool:
        return any(stream.captured is not None for stream in self.streams.values())

    def _allocate(self, name: str, size: int, owned: dict[int, Any]) -> tuple[Status, int | None]:
        status = self._enter(name)
        if self.capturing:
            return Status(NOT_WHILE_CAPTURING), None
        if status == SUCCESS and size > self.free_bytes:
            status = OUT_OF_MEMORY
        if status != SUCCESS:
            return Status(status), None
        self.free_bytes -= size
        buffer = ctypes.create_string_buffer(b"\xcd" * size, size)
        owned[ctypes.addressof(buffer)] = buffer
        self.device_of[ctypes.addressof(buffer)] = self.current
        return Status(SUCCESS), ctypes.addressof(buffer)

    def cudaMalloc(self, size: int) -> tuple[Status, int | None]:
        return self._allocate("cudaMalloc", size, self.device)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Status, int | None]:
        return self._allocate("cudaHostAlloc", size, self.pinned)

    def _free(self, name: str, address: int, owned: dict[int, Any]) -> tuple[Status]:
        status = self._enter(name)
        if address not in owned:
            return (Status(INVALID_VALUE),)
        self.free_bytes += len(owned.pop(address))
        return (Status(status),)

    def cudaFree(self, address: int) -> tuple[Status]:
        return self._free("cudaFree", address, self.device)

    def cudaFreeHost(self, address: int) -> tuple[Status]:
        return self._free("cudaFreeHost", address, self.pinned)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, Stream | None]:
        status = self._enter("cudaStreamCreateWithFlags")
        if status != SUCCESS:
            return Status(status), None
        stream = Stream(1000 + len(self.streams), self.current)
        self.streams[stream.handle] = stream
        return Status(SUCCESS), stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Status]:
        status = self._enter("cudaStreamDestroy")
        if self.streams.pop(stream.handle, None) is None:
            return (Status(INVALID_HANDLE),)
        return (Status(status),)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Status]:
        status = self._enter("cudaStreamSynchronize")
        if stream.handle not in self.streams:
            return (Status(INVALID_HANDLE),)
        if stream.captured is not None:
            return (Status(NOT_WHILE_CAPTURING),)
        self.waits += 1
        if self.break_at_wait is not None and self.waits >= self.break_at_wait:
            self.broken, status = True, ILLEGAL_ADDRESS
        if status == SUCCESS:
            for work in stream.queue:
                work()
        stream.queue.clear()
        return (Status(status),)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: Stream) -> tuple[Status]:
        status = self._enter("cudaMemcpyAsync")
        inward = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (source, to) if inward else (to, source)
        if not (_holds(self.pinned, host, size) and _holds(self.device, device, size)):
            return (Status(INVALID_VALUE),)
        if stream.handle not in self.streams or stream.device != self.current:
            return (Status(INVALID_HANDLE),)
        if status == SUCCESS:
            stream.add(lambda: ctypes.memmove(to, source, size) and None)
        return (Status(status),)

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> tuple[Status]:
        status = self._enter("cudaStreamBeginCapture")
        if stream.captured is not None or stream.queue:
            return (Status(INVALID_VALUE),)
        stream.captured = []
        return (Status(status),)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Status, Any]:
        status = self._enter("cudaStreamEndCapture")
        graph, stream.captured = stream.captured, None
        return Status(status), graph

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[Status, int | None]:
        status = self._enter("cudaGraphInstantiate")
        if status != SUCCESS:
            return Status(status), None
        handle = 5000 + len(self.graphs)
        self.graphs[handle] = list(graph)
        return Status(SUCCESS), handle

    def cudaGraphDestroy(self, graph: Any) -> tuple[Status]:
        return (Status(self._enter("cudaGraphDestroy")),)

    def cudaGraphExecDestroy(self, handle: int) -> tuple[Status]:
        if self.graphs.pop(handle, None) is None:
            return (Status(INVALID_HANDLE),)
        return (Status(self._enter("cudaGraphExecDestroy")),)

    def cudaGraphLaunch(self, handle: int, stream: Stream) -> tuple[Status]:
        status = self._enter("cudaGraphLaunch")
        if handle not in self.graphs or stream.device != self.current:
            return (Status(INVALID_HANDLE),)
        for work in self.graphs[handle]:
            stream.add(work)
        return (Status(status),)

    def cudaGetLastError(self) -> tuple[Status]:
        return (Status(SUCCESS),)

    def cudaGetErrorString(self, status: int) -> tuple[Status, bytes]:
        return Status(SUCCESS), b"an illegal memory access was encountered"


def _holds(owned: dict[int, Any], address: int, size: int) -> bool:
    return any(start <= address and address + size <= start + len(buffer) for start, buffer in owned.items())


def embed(tiles: np.ndarray) -> np.ndarray:
    """What the fake engine computes: the first values of each tile, so that a mixed-up tile shows."""
    return tiles.reshape(len(tiles), -1)[:, :DIM].astype(np.float32) / 3.0


def patch_tokens(tiles: np.ndarray) -> np.ndarray:
    """What it gives beside, where it has that output: 2 x 3 tokens of 4 channels, the last values of each tile."""
    return tiles.reshape(len(tiles), -1)[:, -24:].reshape(-1, 6, 4).astype(np.float32) / 5.0


class FakeTensorRT:
    """The `tensorrt` or `tensorrt_rtx` module, as far as the runtime uses it."""

    __version__ = "1.7.1.116"

    class ILogger:
        pass

    class TensorIOMode(IntEnum):
        INPUT = 1
        OUTPUT = 2

    class CudaGraphStrategy(IntEnum):
        DISABLED = 0
        WHOLE_GRAPH_CAPTURE = 1

    def __init__(self, cudart: Cudart, profile: tuple[int, int, int] = (1, 4, 8)) -> None:
        self.cudart, self.profile = cudart, profile
        self.contexts = 0
        self.refitted_from: str | None = None
        self.refuse_to_run = False
        self.capturable = True
        self.kernels = b""
        self.tokens = False

    def Runtime(self, logger: Any) -> "FakeRuntime":
        return FakeRuntime(self, logger)

    def Refitter(self, engine: Any, logger: Any) -> "FakeRefitter":
        return FakeRefitter()

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> "FakeParserRefitter":
        return FakeParserRefitter(self)


class Severity:
    name = "ERROR"


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, data: bytes) -> "FakeEngine | None":
        if data != b"engine":
            self.logger.log(Severity, "Magic tag\n does not match")
            return None
        return FakeEngine(self.trt, self.logger)


class FakeRefitter:
    def refit_cuda_engine(self) -> bool:
        return True


class FakeParserRefitter:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def refit_from_file(self, model: str) -> bool:
        self.trt.refitted_from = model
        return "wrong" not in model


class FakeCache:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def deserialize(self, data: bytes) -> bool:
        self.trt.kernels = data
        return True

    def serialize(self) -> bytes:
        return b"kernels of this GPU"


class FakeConfig:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.cuda_graph_strategy = 0

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache(self.trt)

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        return True


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.device = trt.cudart.current
        self.names = ["tokens"] * trt.tokens + ["tiles", "embedding"]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> int:
        return self.trt.TensorIOMode.INPUT if name == "tiles" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, PX, PX, 3) for batch in self.trt.profile]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        smallest, _, largest = self.trt.profile
        batch = smallest if smallest == largest else -1
        return {"tiles": (batch, PX, PX, 3), "embedding": (batch, DIM), "tokens": (batch, 6, 4)}[name]

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self.trt)

    def create_execution_context(self, config: FakeConfig | None = None) -> "FakeContext | None":
        if self.trt.cudart.free_bytes < 100:
            self.logger.log(Severity, "OutOfMemory (Requested size was 99 bytes.)")
            return None
        self.trt.contexts += 1
        assert self.trt.cudart.current == self.device, "the engine was loaded on another device"
        return FakeContext(self.trt, self.logger)


class FakeContext:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.address: dict[str, int] = {}
        self.batch = 0
        self.stream: int | None = None
        self.device = trt.cudart.current

    def __del__(self) -> None:
        self.trt.contexts -= 1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.address[name] = memory
        return memory in self.trt.cudart.device and self.trt.cudart.device_of[memory] == self.device

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return shape[1:] == (PX, PX, 3) and self.trt.profile[0] <= shape[0] <= self.trt.profile[2]

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.trt.refuse_to_run:
            self.logger.log(Severity, "no kernel image is available")
            return False
        stream = self.trt.cudart.streams[stream_handle]
        if (
            not self.batch
            or len(self.address) != 2 + self.trt.tokens
            or stream.device != self.device
            or self.trt.cudart.current != self.device
        ):
            self.logger.log(Severity, "an input has no shape, a tensor no address, or the device is another one")
            return False
        if stream.captured is not None and not self.trt.capturable:
            return False
        assert self.stream in {None, stream_handle}, "an execution context must stay on one stream"
        self.stream = stream_handle
        batch, tiles_at = self.batch, self.address["tiles"]
        computed = {"embedding": embed, "tokens": patch_tokens}

        def compute() -> None:
            tiles = np.frombuffer((ctypes.c_uint8 * (batch * PX * PX * 3)).from_address(tiles_at), np.uint8)
            for name in self.address.keys() & computed.keys():
                result = np.ascontiguousarray(computed[name](tiles.reshape(batch, PX, PX, 3)))
                ctypes.memmove(self.address[name], result.ctypes.data, result.nbytes)

        stream.add(compute)
        return True
