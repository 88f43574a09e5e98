"""OpenVINO: on the processor, or another of its devices."""

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Capabilities, check_gives_tokens, check_graph, check_tiles, closed_error
from atlas_edge.errors import InputError, RuntimeMissing
from atlas_edge.manifest import Manifest
from atlas_edge.runtimes.batching import empty_results, encode_in_pieces, pieces
from atlas_edge.runtimes.devices.openvino import InferencePrecision, find_device, gpus
from atlas_edge.runtimes.int8_sums import with_float_weights
from atlas_edge.runtimes.openvino_library import openvino_library
from atlas_edge.runtimes.openvino_model import ModelSource
from atlas_edge.runtimes.registry import PROFILE_WARM_UP, Layer, Runtime
from atlas_edge.spec import EncoderSpec
from atlas_edge.system.hardware import usable_cores

# With one stream a core, four tiles of a ViT-S are enough to fill it, and their activations stay in its cache.
DEFAULT_BATCH = 4
# Calls side by side on a GPU or NPU: one is copied while the other is computed.
_STREAMS = 2
# Stands for the form of more tiles than a batch.
_SIDE_BY_SIDE = 0
_IN_FLOAT = (
    "this processor has no exact 8-bit sums (no VNNI, no AMX), so its INT8 layers were computed in floating point: "
    "right embeddings, not the speed of INT8; on such a processor, use --precision fp32"
)


class OpenVinoEncoder:
    """An OpenVINO model with input `tiles`, output `embedding` and perhaps `tokens`, compiled for fixed batch sizes.

    OpenVINO runs a static batch faster than a dynamic one, so a single tile, up to `batch` tiles and more than that
    each have a form of their own, compiled at first use; other numbers of tiles are cut or filled up. Each form holds
    all weights, and OpenVINO shares them between none: one is held at a time, until a call needs again what has been
    given up for another. Threads may share an encoder: they take turns, and `close` waits for the call that is under
    way.

    Args:
        model: File (`.xml` or `.onnx`), or a model in memory.
        spec: Shape and preprocessing.
        inference_precision: Precision of the layers that are not quantized. Where the device lacks it, the processor
            takes `f32`, others `f16`; `runtime` says what is used.
        threads: Inference threads; OpenVINO's own choice when None.
        batch: Tiles a call.
        streams: Calls that run side by side, each on its share of the threads; one a thread when None. Each core then
            works on tiles of its own and waits for none of the others. A call of `batch` tiles or fewer is run by one
            stream on all threads.
        cache_dir: Folder for compiled models; none when None.
        portable: See `Execution.portable`.
        device: See `find_device`; the processor when None.

    Raises:
        UsageError: OpenVINO knows no such device.
        RuntimeMissing: OpenVINO is not installed, or the device is not here.
        InputError: The file is not a model that it can read.
    """

    def __init__(
        self,
        model: Any,
        spec: EncoderSpec,
        *,
        inference_precision: InferencePrecision = "f32",
        threads: int | None = None,
        batch: int | None = None,
        streams: int | None = None,
        cache_dir: Path | None = None,
        portable: bool = False,
        device: str | None = None,
    ) -> None:
        try:
            openvino = openvino_library()
        except ImportError as error:
            raise RuntimeMissing("openvino is not installed", hint="pip install 'atlas-edge[openvino]'") from error
        self._core = openvino.Core()
        chosen = find_device(self._core, device)
        self._source: ModelSource | None = ModelSource(self._core, model)
        network = self._source.first
        check_graph("the model", spec, _shapes(network.inputs), _shapes(network.outputs))
        in_int8 = any(node.get_type_name() == "FakeQuantize" for node in network.get_ops())
        self._device, in_float = chosen.for_int8(portable=portable) if in_int8 else (chosen, {})
        self._in_float = bool(in_float)
        self._notes: tuple[str, ...] = (_IN_FLOAT,) if in_float else ()
        self.spec = spec
        self.batch = batch or DEFAULT_BATCH
        self.streams = streams or ((threads or usable_cores()) if self._device.has_cpu else _STREAMS)
        self.inference_precision = self._device.precision(self._core, inference_precision)
        # Pinning would tie the calling thread to one core, and every thread that it starts later (decoders, a second
        # runtime) with it; and a core that another program uses would hold all of them up.
        cpu: dict[str, Any] = {"ENABLE_CPU_PINNING": False, **in_float}
        if threads is not None:
            cpu["INFERENCE_NUM_THREADS"] = threads
        self._properties = {
            "INFERENCE_PRECISION_HINT": self.inference_precision,
            **self._device.properties(cpu),
            **({} if cache_dir is None else {"CACHE_DIR": str(cache_dir)}),
        }
        parts = ["OpenVINO", openvino.__version__.partition("-")[0], self._device.name, self.inference_precision]
        int8 = " + int8 computed in float" if in_float else " + int8"
        self.runtime = " ".join(parts) + int8 * in_int8
        self._lock = threading.Lock()
        self._forms: dict[int, Any] = {}
        self._given_up: set[int] = set()
        # A program that ends with an encoder open: OpenVINO's threads must be gone before its library is.
        weakref.finalize(self, self._forms.clear)

    @classmethod
    def from_bundle(
        cls,
        folder: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        cache_dir: Path | None = None,
        device: str | None = None,
    ) -> "OpenVinoEncoder":
        """Open a verified bundle."""
        return cls(
            folder / manifest.execution.model_file,
            manifest.encoder,
            inference_precision=manifest.execution.inference_precision,
            threads=threads,
            batch=manifest.execution.batch,
            cache_dir=cache_dir,
            portable=manifest.execution.portable,
            device=device,
        )

    @property
    def capabilities(self) -> Capabilities:
        """See `Encoder.capabilities`."""
        return Capabilities(batch=self.batch, streams=self.streams, configure=self.configure, notes=self._notes)

    def configure(self, *, batch: int | None = None, streams: int | None = None) -> None:
        """Change how many tiles a call takes and how many calls run side by side; compiled again at the next use.

        Several streams raise throughput where `encode` gets many batches at once and one call does not fill the
        cores; a single batch or tile is always run by one stream.

        Args:
            batch: Tiles a call; unchanged when None.
            streams: Streams; unchanged when None.
        """
        with self._lock:
            self.batch = batch or self.batch
            self.streams = streams or self.streams
            self._drop_compiled()

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles; see `Encoder.encode`."""
        return self._run(tiles, tokens=False)[0]

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Encoder.encode_tokens`."""
        check_gives_tokens(self.spec)
        embeddings, tokens = self._run(tiles, tokens=True)
        return embeddings, tokens

    def _run(self, tiles: NDArray[np.uint8], *, tokens: bool) -> list[NDArray[np.float32]]:
        check_tiles(tiles, self.spec)
        with self._lock:
            if self._source is None:
                raise closed_error(self.spec)
            try:
                return self._encode(tiles, self.spec.output_shapes(tokens=tokens))
            except RuntimeError as error:
                raise InputError(
                    f"OpenVINO cannot run {self.spec.name}: {' '.join(str(error).split())}",
                    hint="export the bundle again with this version of openvino, or embed fewer tiles at once",
                ) from error

    def close(self) -> None:
        """See `Encoder.close`."""
        with self._lock:
            self._drop_compiled()
            self._source = None

    def _drop_compiled(self) -> None:
        self._forms.clear()
        self._given_up.clear()

    def _encode(self, tiles: NDArray[np.uint8], shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        if self.streams > 1 and len(tiles) > self.batch:
            return self._encode_side_by_side(tiles, shapes)
        size = 1 if len(tiles) == 1 else self.batch
        request = self._form(size)

        def infer(piece: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
            request.infer({0: piece}, share_inputs=True)
            return [request.get_output_tensor(place).data for place in range(len(shapes))]

        return encode_in_pieces(tiles, infer, piece=size, shapes=shapes, fixed=True)

    def _encode_side_by_side(
        self, tiles: NDArray[np.uint8], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        requests = self._form(_SIDE_BY_SIDE)
        results = empty_results(len(tiles), shapes)
        under_way: deque[tuple[Any, slice]] = deque()

        def take() -> None:
            request, rows = under_way[0]
            request.wait()
            under_way.popleft()
            for place, result in enumerate(results):
                result[rows] = request.get_output_tensor(place).data[: rows.stop - rows.start]

        # Without OpenVINO's queue, which calls back into Python: whoever gives its requests up while one of its threads
        # waits for the interpreter would wait for that thread, with the interpreter in hand, for ever.
        try:
            for number, (rows, piece) in enumerate(pieces(tiles, self.batch, fixed=True)):
                if len(under_way) == len(requests):
                    take()
                request = requests[number % len(requests)]
                request.start_async({0: piece})
                under_way.append((request, rows))
            while under_way:
                take()
        finally:
            # After Ctrl-C, too: the next call finds every request at rest.
            for request, _ in under_way:
                with suppress(RuntimeError):
                    request.wait()
        return results

    def _form(self, size: int) -> Any:
        """A request for calls of `size` tiles, or the requests that run side by side."""
        if size not in self._forms:
            if size not in self._given_up:
                self._given_up.update(self._forms)
                self._forms.clear()
            if size == _SIDE_BY_SIDE:
                # How many streams a GPU or NPU has is its own affair.
                streams = {"NUM_STREAMS": self.streams} if self._device.is_cpu else {"PERFORMANCE_HINT": "THROUGHPUT"}
                compiled = self._compile(self.batch, streams)
                # One request waits while the other of a stream runs.
                self._forms[size] = [compiled.create_infer_request() for _ in range(2 * self.streams)]
            else:
                compiled = self._compile(size, {"PERFORMANCE_HINT": "LATENCY"})
                self._forms[size] = compiled.create_infer_request()
        return self._forms[size]

    def _compile(self, batch: int, properties: dict[str, Any]) -> Any:
        assert self._source is not None
        model = self._source.take()
        if self._in_float:
            model = with_float_weights(model)
        side = self.spec.tile_px
        try:
            model.reshape({model.inputs[0]: [batch, side, side, 3]})
            compiled = self._core.compile_model(model, self._device.name, {**self._properties, **properties})
        except Exception as error:  # its plugins raise anything
            raise InputError(
                f"OpenVINO cannot compile {self.spec.name} for {batch} tiles: {' '.join(str(error).split())}",
                hint="export the bundle again with this version of openvino",
            ) from error
        del model
        self._source.compiled()
        return compiled


def _shapes(ports: Any) -> list[list[int | None]]:
    shapes = [port.partial_shape for port in ports]
    return [
        [size.get_length() if size.is_static else None for size in shape] if shape.rank.is_static else []
        for shape in shapes
    ]


def _layers(folder: Path, manifest: Manifest, tiles: NDArray[np.uint8], calls: int, threads: int | None) -> list[Layer]:
    encoder = OpenVinoEncoder.from_bundle(folder, manifest, threads=threads)
    compiled = encoder._compile(len(tiles), {"PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY"})
    shapes = {node.get_friendly_name(): _shape(node) for node in compiled.get_runtime_model().get_ordered_ops()}
    request = compiled.create_infer_request()
    runs = []
    for _ in range(PROFILE_WARM_UP + calls):
        request.infer({0: tiles})
        runs.append([info.real_time.total_seconds() * 1e3 for info in request.profiling_info])
    times = np.median(np.array(runs[PROFILE_WARM_UP:]), axis=0)
    return [
        Layer(
            name=info.node_name,
            kind=info.node_type,
            implementation=info.exec_type,
            width=shapes.get(info.node_name, (0,))[-1],
            rank=len(shapes.get(info.node_name, ())),
            ms=float(ms),
        )
        for info, ms in zip(request.profiling_info, times, strict=True)
        if ms > 0
    ]


def _shape(node: Any) -> tuple[int, ...]:
    shape = node.get_output_partial_shape(0) if node.get_output_size() else None
    if shape is None or shape.is_dynamic or len(shape) == 0:
        return (0,)
    return tuple(int(length.get_length()) for length in shape)


RUNTIME = Runtime(
    title="OpenVINO",
    module="openvino",
    extra="openvino",
    open=OpenVinoEncoder.from_bundle,
    int8_notice="plain OpenVINO adds 8-bit products with saturation on a processor without VNNI or AMX, and its "
    "embeddings are WRONG there (DINOv2 ViT-S/14: cosine 0.993 in the median, 0.888 in the 1st percentile). Open the "
    "bundle with atlas_edge.open_bundle, which is right everywhere, or compile it with LP_TRANSFORMS_MODE off there.",
    layers=_layers,
    other_devices=gpus,
)
