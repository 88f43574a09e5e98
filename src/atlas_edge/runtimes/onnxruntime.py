"""ONNX Runtime: on the processor, or through another of its execution providers."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Capabilities, check_gives_tokens, check_graph, check_tiles, closed_error
from atlas_edge.errors import InputError, RuntimeMissing
from atlas_edge.manifest import Manifest
from atlas_edge.runtimes.batching import encode_in_pieces
from atlas_edge.runtimes.devices.onnxruntime import accelerators, choose_provider
from atlas_edge.runtimes.registry import PROFILE_WARM_UP, Layer, Runtime
from atlas_edge.spec import EncoderSpec

_PIECE = 32
# Without VNNI, pairs of 8-bit products saturate at 16 bits; ONNX Runtime then takes its slower unsigned products. It
# looks at the processor itself: with VNNI the option changes nothing.
EXACT_INT8_SUMS = ("session.x64quantprecision", "1")


class OnnxEncoder:
    """An ONNX graph with input `tiles` and output `embedding`, and perhaps `tokens`.

    Args:
        path: ONNX file.
        spec: Shape and preprocessing.
        threads: Intra-op threads; one a physical core when None.
        precision: For `runtime` only: what the graph computes in.
        portable: See `Execution.portable`: the faster sums are exact, too.
        device: See `choose_provider`.

    Raises:
        UsageError: `device` has not the form of one.
        RuntimeMissing: ONNX Runtime is not installed, or the device is not here.
        InputError: The file is not a graph that it can load.
    """

    def __init__(
        self,
        path: Path,
        spec: EncoderSpec,
        *,
        threads: int | None = None,
        precision: str | None = None,
        portable: bool = False,
        device: str | None = None,
    ) -> None:
        onnxruntime, options = _library(threads, portable=portable)
        provider = choose_provider(onnxruntime, options, device)
        try:
            # Falling back prints, and is of use only where there is a GPU that was not asked for.
            self._session: Any = onnxruntime.InferenceSession(
                str(path),
                sess_options=options,
                providers=provider.providers or None,
                enable_fallback=device is None and provider.gpu is not None,
            )
            shapes = [
                [port.shape for port in ports] for ports in (self._session.get_inputs(), self._session.get_outputs())
            ]
            self._input = self._session.get_inputs()[0].name if shapes[0] else ""
            self._outputs = [port.name for port in self._session.get_outputs()]
        except Exception as error:  # its errors have no common base; names that are no UTF-8 are told when asked for
            raise InputError(
                f"{path.name}: ONNX Runtime cannot load it: {' '.join(str(error).split())}",
                hint="export the bundle again with this version of onnxruntime",
            ) from error
        self.spec = spec
        check_graph(path.name, spec, *shapes)
        batch = shapes[0][0][0]
        used = self._session.get_providers()[0]
        if device is not None and used != provider.name:
            self._session = None
            raise RuntimeMissing(
                f"--device {device}: ONNX Runtime could not start {provider.name}",
                hint="look at its driver and libraries, or leave --device out: the bundle then runs on the processor",
            )
        self.capabilities = Capabilities(
            gpu=provider.gpu if used == provider.name else None,
            batch=batch if isinstance(batch, int) else None,
            fixed_batch=isinstance(batch, int),
        )
        parts = [f"ONNX Runtime {onnxruntime.__version__}", used.removesuffix("ExecutionProvider")]
        self.runtime = " ".join(parts + ([precision] if precision else []))

    @classmethod
    def from_bundle(
        cls,
        folder: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        cache_dir: Path | None = None,
        device: str | None = None,
    ) -> "OnnxEncoder":
        """Open a verified bundle; nothing is compiled that could be kept in `cache_dir`."""
        path, portable = folder / manifest.execution.model_file, manifest.execution.portable
        precision = manifest.precision.value
        return cls(path, manifest.encoder, threads=threads, precision=precision, portable=portable, device=device)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles; see `Encoder.encode`."""
        return self._encode(tiles, tokens=False)[0]

    def encode_tokens(self, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Encoder.encode_tokens`."""
        check_gives_tokens(self.spec)
        embeddings, tokens = self._encode(tiles, tokens=True)
        return embeddings, tokens

    def _encode(self, tiles: NDArray[np.uint8], *, tokens: bool) -> list[NDArray[np.float32]]:
        check_tiles(tiles, self.spec)
        session = self._session
        if session is None:
            raise closed_error(self.spec)
        shapes = self.spec.output_shapes(tokens=tokens)
        wanted = self._outputs[: len(shapes)]

        def infer(piece: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
            try:
                result: list[NDArray[np.float32]] = session.run(wanted, {self._input: piece})
            except Exception as error:
                raise InputError(
                    f"ONNX Runtime cannot run {self.spec.name}: {' '.join(str(error).split())}",
                    hint="export the bundle again with this version of onnxruntime",
                ) from error
            return result

        piece, fixed = self.capabilities.batch or _PIECE, self.capabilities.fixed_batch
        return encode_in_pieces(tiles, infer, piece=piece, shapes=shapes, fixed=fixed)

    def close(self) -> None:
        """See `Encoder.close`. ONNX Runtime frees a session with the last call that uses it."""
        self._session = None


def _layers(folder: Path, manifest: Manifest, tiles: NDArray[np.uint8], calls: int, threads: int | None) -> list[Layer]:
    onnxruntime, options = _library(threads, portable=manifest.execution.portable)
    with tempfile.TemporaryDirectory() as scratch:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        path = folder / manifest.execution.model_file
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(PROFILE_WARM_UP + calls):
            session.run(None, {session.get_inputs()[0].name: tiles})
        events = json.loads(Path(session.end_profiling()).read_bytes())
    return profiled_layers(events, warm_up=PROFILE_WARM_UP)


def _library(threads: int | None, *, portable: bool) -> tuple[Any, Any]:
    """ONNX Runtime, and the options of a session."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing("onnxruntime is not installed", hint="pip install 'atlas-edge[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not portable:
        options.add_session_config_entry(*EXACT_INT8_SUMS)
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime, options


def profiled_layers(events: list[dict[str, Any]], *, warm_up: int = 0) -> list[Layer]:
    """The layers of an ONNX Runtime profile, with the median over the calls after the first `warm_up`."""
    kernels = [event for event in events if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")]
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in kernels:
        # A fused node may share its name with another: the index in the graph is its own.
        runs.setdefault(f"{event['args']['node_index']} {event['name']}", []).append(event)
    found = []
    for seen in runs.values():
        shape = [
            int(length) for one in seen[-1]["args"]["output_type_shape"][:1] for length in next(iter(one.values()))
        ]
        found.append(
            Layer(
                name=str(seen[-1]["name"]).removesuffix("_kernel_time"),
                kind=str(seen[-1]["args"]["op_name"]),
                implementation=str(seen[-1]["args"].get("provider", "")),
                width=shape[-1] if shape else 0,
                rank=len(shape),
                ms=float(np.median([event["dur"] for event in seen[warm_up:]])) / 1e3,
            )
        )
    return found


RUNTIME = Runtime(
    title="ONNX Runtime",
    module="onnxruntime",
    extra="onnx",
    open=OnnxEncoder.from_bundle,
    int8_notice="plain ONNX Runtime adds 8-bit products with saturation on a processor without VNNI, and its "
    "embeddings are WRONG there (DINOv2 ViT-S/14: cosine 0.9956 for the worst tile; atlas2-demo: 0.93 in the median, "
    "0.81 for the worst). Open the bundle with "
    "atlas_edge.open_bundle, which is right everywhere, or set session.x64quantprecision to 1.",
    layers=_layers,
    other_devices=accelerators,
)
