"""TensorRT and TensorRT-RTX engines, through CUDA, without PyTorch.

A batch is cut into pieces that take turns on two streams, each with its own execution context and pinned buffers:
while one piece is computed, the next is copied.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Capabilities, check_gives_tokens, check_graph, check_tiles, closed_error
from atlas_edge.errors import RuntimeMissing
from atlas_edge.manifest import Manifest
from atlas_edge.runtimes.batching import empty_results
from atlas_edge.runtimes.cuda import Cuda, DeviceFault
from atlas_edge.runtimes.registry import Runtime
from atlas_edge.runtimes.tensorrt_engine import TensorRTEngine
from atlas_edge.runtimes.tensorrt_fit import check_fit, library_of
from atlas_edge.runtimes.tensorrt_library import ENTERPRISE, RTX, import_library, installed_version
from atlas_edge.spec import EncoderSpec
from atlas_edge.system.gpu_probe import probe_gpu

_STREAMS = 2
STRIPPED = "strip_weights"


class TensorRTEncoder:
    """An engine on one GPU. Threads may share it: they take turns.

    Args:
        engine: Deserialised engine.
        cuda: Owner of the device memory.
        spec: Shape and preprocessing.
        runtime: What reports print.
        own_graphs: Capture CUDA graphs here for engines of one batch size. TensorRT-RTX captures its own.
    """

    def __init__(
        self, engine: TensorRTEngine, cuda: Cuda, spec: EncoderSpec, *, runtime: str, own_graphs: bool
    ) -> None:
        self.spec = spec
        self.runtime = runtime
        self._engine: TensorRTEngine | None = engine
        self._cuda = cuda
        self.capabilities = Capabilities(gpu=cuda.index)
        self._smallest, self._optimum, self._largest = engine.batch_profile()
        self._own_graphs = own_graphs and self._smallest == self._largest
        # Of each: whether it brings the patch tokens, and its number.
        self._lanes: dict[tuple[bool, int], _Lane] = {}
        # A call that fails closes what it runs on.
        self._lock = threading.RLock()
        outputs = [engine.shape(name) for name in engine.output_names]
        check_graph("the engine", spec, [engine.shape(engine.input_name)], outputs)

    @classmethod
    def from_bundle(
        cls,
        folder: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        cache_dir: Path | None = None,
        device: str | None = None,
    ) -> "TensorRTEncoder":
        """Load a verified bundle's engine onto the first GPU that it fits, or the one that `device` names.

        `device` is `cuda:1`, or its number alone; `threads` are the processor's.

        Raises:
            UsageError: `device` has not that form.
            RuntimeMissing: The library, a usable GPU or the engine's own GPU generation is not here; the hint names
                what to install, the fallback in the bundle, or the command that rebuilds the engine.
            InputError: The library refuses the engine.
        """
        library = library_of(manifest)
        # The driver first: where it is missing, loading the library can end the process.
        probe = probe_gpu()
        version = installed_version(library)
        if version is None and probe.gpus:
            raise RuntimeMissing(f"{folder} needs {library.title}, which is not installed", hint=library.install_hint)
        fit = check_fit(folder, manifest, version=version or "none", probe=probe, device=device)
        trt = import_library(library)
        cuda = Cuda.open(fit.device)
        stripped = STRIPPED in manifest.execution.engine_options
        fallback = manifest.execution.fallback_file
        with cuda.freed_on_fault():
            engine = TensorRTEngine(
                trt,
                library,
                (folder / manifest.execution.model_file).read_bytes(),
                weights=folder / fallback if stripped and fallback else None,
                runtime_cache=_runtime_cache(manifest, cache_dir),
            )
            runtime = f"{library.title} {version} ({manifest.precision.value}, {fit.gpu.name})"
            return cls(engine, cuda, manifest.encoder, runtime=runtime, own_graphs=not library.runtime_cache)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles; see `Encoder.encode`.

        Raises:
            DeviceFault: The GPU failed or is out of memory. The encoder is closed then.
        """
        return self._run(tiles, tokens=False)[0]

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Encoder.encode_tokens`.

        Raises:
            DeviceFault: As `encode`.
        """
        check_gives_tokens(self.spec)
        embeddings, tokens = self._run(tiles, tokens=True)
        return embeddings, tokens

    def _run(self, tiles: NDArray[np.uint8], *, tokens: bool) -> list[NDArray[np.float32]]:
        check_tiles(tiles, self.spec)
        with self._lock:
            if self._engine is None:
                raise closed_error(self.spec)
            try:
                self._cuda.use()
                return self._encode(tiles, tokens=tokens)
            except BaseException:
                # After a fault nothing on the device can be trusted; after Ctrl-C copies may still be under way.
                self.close()
                raise

    def close(self) -> None:
        """See `Encoder.close`."""
        with self._lock:
            if self._engine is None:
                return
            engine, self._engine = self._engine, None
            try:
                self._cuda.wait_all()
                self._lanes.clear()
                engine.close()
            finally:
                self._cuda.close()

    def _encode(self, tiles: NDArray[np.uint8], *, tokens: bool) -> list[NDArray[np.float32]]:
        results = empty_results(len(tiles), self.spec.output_shapes(tokens=tokens))
        under_way: deque[tuple[_Lane, int, int]] = deque()
        for index, (start, stop) in enumerate(self._pieces(len(tiles))):
            if len(under_way) == _STREAMS:
                _collect(under_way, results)
            lane = self._lane(index % _STREAMS, tokens=tokens)
            lane.submit(tiles[start:stop])
            under_way.append((lane, start, stop))
        while under_way:
            _collect(under_way, results)
        return results

    def _pieces(self, count: int) -> list[tuple[int, int]]:
        """One piece where the profile takes the whole batch, else pieces of the size that kernels are tuned for."""
        piece = count if count <= self._largest else self._optimum
        return [(start, min(start + piece, count)) for start in range(0, count, piece)]

    def _lane(self, index: int, *, tokens: bool) -> "_Lane":
        # Made when first needed: batches of one piece never pay for the second stream's activations.
        if (tokens, index) not in self._lanes:
            assert self._engine is not None
            sizes = self._smallest, self._largest
            self._lanes[tokens, index] = _Lane(
                self._engine, self._cuda, self.spec, *sizes, tokens=tokens, graphs=self._own_graphs
            )
        return self._lanes[tokens, index]


class _Lane:
    """A stream with its execution context and buffers; without `tokens`, these stay on the device."""

    def __init__(
        self,
        engine: TensorRTEngine,
        cuda: Cuda,
        spec: EncoderSpec,
        smallest: int,
        largest: int,
        *,
        tokens: bool,
        graphs: bool,
    ) -> None:
        self._engine, self._cuda, self._smallest = engine, cuda, smallest
        self._tile_shape = (spec.tile_px, spec.tile_px, 3)
        self._stream = cuda.stream()
        self._tiles = cuda.pinned_array((largest, *self._tile_shape), np.uint8)
        self._results = [
            cuda.pinned_array((largest, *shape), np.float32) for shape in spec.output_shapes(tokens=tokens)
        ]
        self._device_tiles = cuda.device_memory(self._tiles.nbytes)
        self._device_results = [
            cuda.device_memory(4 * largest * math.prod(shape)) for shape in spec.output_shapes(tokens=True)
        ]
        self._context: Any = engine.new_context()
        self._check(self._context.set_tensor_address(engine.input_name, self._device_tiles), "set_tensor_address")
        for name, memory in zip(engine.output_names, self._device_results, strict=True):
            self._check(self._context.set_tensor_address(name, memory), "set_tensor_address")
        self._shaped_for = 0
        self._graphs = graphs
        self._runs = 0
        self._graph: Any = None

    def submit(self, tiles: NDArray[np.uint8]) -> None:
        """Queue a piece of at most `largest` tiles; fewer than `smallest` are filled up with black."""
        count = max(len(tiles), self._smallest)
        self._tiles[: len(tiles)] = tiles
        self._tiles[len(tiles) : count] = 0
        if self._shaped_for != count:
            self._check(self._context.set_input_shape(self._engine.input_name, (count, *self._tile_shape)), "batch")
            self._shaped_for = count
        # The library finishes its own preparations in the first run, which a graph may not hold.
        if self._graphs and self._graph is None and self._runs == 1:
            self._capture(count)
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._queue(count)
        self._runs += 1

    def collect(self, outs: Sequence[NDArray[np.float32]]) -> None:
        """Wait for the piece and copy the first results of it that `outs` have room for."""
        self._cuda.wait(self._stream)
        for out, result in zip(outs, self._results, strict=True):
            out[:] = result[: len(out)]

    def _queue(self, count: int) -> None:
        self._cuda.copy_to_device(self._device_tiles, self._tiles[:count], self._stream)
        self._check(self._context.execute_async_v3(int(self._stream)), "execute_async_v3")
        for result, memory in zip(self._results, self._device_results, strict=False):
            self._cuda.copy_to_host(result[:count], memory, self._stream)

    def _capture(self, count: int) -> None:
        self._cuda.wait(self._stream)
        try:
            self._graph = self._cuda.capture(self._stream, lambda: self._queue(count))
        except DeviceFault:
            # Not every engine can be captured; it runs all the same.
            self._graphs = False

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise DeviceFault(
                f"the engine failed in {what}: {self._engine.last_message()}",
                hint="run atlas-bench selftest BUNDLE and report what it writes",
            )


def _runtime_cache(manifest: Manifest, cache_dir: Path | None) -> Path | None:
    """Where this engine's compiled kernels are kept: by the engine's hash, so another engine never reads them."""
    digests = [entry.sha256 for entry in manifest.files if entry.path == manifest.execution.model_file]
    return cache_dir / f"{digests[0][:16]}.rtx-kernels" if cache_dir and digests else None


def _collect(under_way: "deque[tuple[_Lane, int, int]]", results: Sequence[NDArray[np.float32]]) -> None:
    lane, start, stop = under_way.popleft()
    lane.collect([result[start:stop] for result in results])


ENTERPRISE_RUNTIME, RTX_RUNTIME = (
    Runtime(title=library.title, module=library.module, extra=library.target.value, open=TensorRTEncoder.from_bundle)
    for library in (ENTERPRISE, RTX)
)
