"""ONNX Runtime on the CPU (or CUDA, where its GPU build is installed)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.encoder import Capabilities, check_graph, check_tiles, closed_error
from atlas_edge.errors import InputError, RuntimeMissing
from atlas_edge.manifest import Manifest
from atlas_edge.runtimes.batching import encode_in_pieces
from atlas_edge.spec import EncoderSpec

_PIECE = 32
# Without VNNI, pairs of 8-bit products saturate at 16 bits; ONNX Runtime then takes its slower unsigned products. It
# looks at the processor itself: with VNNI the option changes nothing.
EXACT_INT8_SUMS = ("session.x64quantprecision", "1")


class OnnxEncoder:
    """An ONNX graph with input `tiles` and output `embedding`.

    Args:
        path: ONNX file.
        spec: Shape and preprocessing.
        threads: Intra-op threads; one a physical core when None.
        precision: For `runtime` only: what the graph computes in.

    Raises:
        RuntimeMissing: ONNX Runtime is not installed.
        InputError: The file is not a graph that it can load.
    """

    def __init__(
        self, path: Path, spec: EncoderSpec, *, threads: int | None = None, precision: str | None = None
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeMissing("onnxruntime is not installed", hint="pip install 'atlas-edge[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(*EXACT_INT8_SUMS)
        if threads is not None:
            options.intra_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
        except Exception as error:  # its errors have no common base
            raise InputError(
                f"{path.name}: ONNX Runtime cannot load it: {' '.join(str(error).split())}",
                hint="export the bundle again with this version of onnxruntime",
            ) from error
        self.spec = spec
        graph_inputs, graph_outputs = self._session.get_inputs(), self._session.get_outputs()
        check_graph(path.name, spec, [port.shape for port in graph_inputs], [port.shape for port in graph_outputs])
        self._input = graph_inputs[0].name
        batch = graph_inputs[0].shape[0]
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.capabilities = Capabilities(
            gpu=0 if provider == "CUDA" else None,
            batch=batch if isinstance(batch, int) else None,
            fixed_batch=isinstance(batch, int),
        )
        parts = [f"ONNX Runtime {onnxruntime.__version__}", provider]
        self.runtime = " ".join(parts + ([precision] if precision else []))

    @classmethod
    def from_bundle(cls, folder: Path, manifest: Manifest, *, threads: int | None = None) -> "OnnxEncoder":
        """Open a verified bundle."""
        path = folder / manifest.execution.model_file
        return cls(path, manifest.encoder, threads=threads, precision=manifest.precision.value)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed tiles; see `Encoder.encode`."""
        check_tiles(tiles, self.spec)
        session = self._session
        if session is None:
            raise closed_error(self.spec)

        def infer(piece: NDArray[np.uint8]) -> NDArray[np.float32]:
            try:
                result: NDArray[np.float32] = session.run(None, {self._input: piece})[0]
            except Exception as error:
                raise InputError(
                    f"ONNX Runtime cannot run {self.spec.name}: {' '.join(str(error).split())}",
                    hint="export the bundle again with this version of onnxruntime",
                ) from error
            return result

        piece, fixed = self.capabilities.batch or _PIECE, self.capabilities.fixed_batch
        return encode_in_pieces(tiles, infer, piece=piece, embed_dim=self.spec.embed_dim, fixed=fixed)

    def close(self) -> None:
        """See `Encoder.close`. ONNX Runtime frees a session with the last call that uses it."""
        self._session = None
