"""An engine file in memory: deserialised, refitted where its weights were stripped, and its execution contexts."""

import logging
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from atlas_edge.errors import InputError
from atlas_edge.runtimes.cuda import DeviceFault
from atlas_edge.runtimes.tensorrt_library import TensorRTLibrary, collecting_logger
from atlas_edge.spec import TOKENS
from atlas_edge.system.atomic import write_atomic

_KEPT_MESSAGES = 20
_log = logging.getLogger(__name__)


class TensorRTEngine:
    """A deserialised engine with one input, and the embedding and perhaps the patch tokens as outputs.

    Args:
        trt: The `tensorrt` or `tensorrt_rtx` module.
        library: Which of them.
        data: Bytes of the engine file.
        weights: ONNX graph to read stripped weights from; None where the engine holds its weights.
        runtime_cache: File that keeps kernels compiled here; TensorRT-RTX only.

    Raises:
        InputError: The library refuses the file, or the ONNX does not fit it.
    """

    def __init__(
        self,
        trt: Any,
        library: TensorRTLibrary,
        data: bytes,
        *,
        weights: Path | None = None,
        runtime_cache: Path | None = None,
    ) -> None:
        self._trt = trt
        self._logger, self._messages = _logger(trt)
        self._messages.clear()
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise InputError(
                f"{library.title} {trt.__version__} cannot load the engine: {self.last_message()}",
                hint="atlas-export rebuild BUNDLE builds it again on this machine",
            )
        self._config: Any = None
        self._cache: Any = None
        self._cache_path = runtime_cache if library.runtime_cache else None
        if library.runtime_cache:
            self._configure_runtime()
        if weights is not None:
            self._refit(weights)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) not in (1, 2):
            raise InputError(
                f"the engine has {len(inputs)} inputs and {len(outputs)} outputs, expected tiles as the one "
                "input, and the embedding as output, perhaps with patch tokens"
            )
        self.input_name: str = inputs[0]
        # The embedding comes first, whatever the order in the engine.
        self.output_names: list[str] = sorted(outputs, key=lambda name: name == TOKENS)

    def new_context(self) -> Any:
        """An execution context; each stream needs its own.

        Raises:
            DeviceFault: The GPU has no room for its activations.
        """
        engine = self._engine
        context = (
            engine.create_execution_context() if self._config is None else engine.create_execution_context(self._config)
        )
        if context is None:
            raise DeviceFault(
                f"no execution context: {self.last_message()}",
                hint="end other programs on the GPU, or rebuild with a smaller batch",
            )
        return context

    def last_message(self) -> str:
        """The library's last error in one line."""
        return self._messages[-1] if self._messages else "it gives no reason"

    def batch_profile(self) -> tuple[int, int, int]:
        """Smallest, optimal and largest batch of the first optimisation profile."""
        smallest, optimum, largest = self._engine.get_tensor_profile_shape(self.input_name, 0)
        return int(smallest[0]), int(optimum[0]), int(largest[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the input or the output, -1 where it is any."""
        return tuple(self._engine.get_tensor_shape(name))

    def close(self) -> None:
        """Keep the compiled kernels, and free the engine. All contexts must be gone."""
        try:
            if self._cache is not None and self._cache_path is not None:
                self._cache_path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._cache_path, bytes(self._cache.serialize()))
        except OSError as error:
            # They are compiled again at the next start.
            _log.warning("compiled kernels cannot be kept in %s: %s", self._cache_path, error.strerror or error)
        finally:
            # The order matters: each holds what comes after it.
            self._cache = self._config = self._engine = self._runtime = None

    def _configure_runtime(self) -> None:
        self._config = self._engine.create_runtime_config()
        self._config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._cache_path is None:
            return
        self._cache = self._config.create_runtime_cache()
        if self._cache_path.is_file():
            # A cache of another GPU or version is ignored by the library.
            self._cache.deserialize(self._cache_path.read_bytes())
        self._config.set_runtime_cache(self._cache)

    def _refit(self, weights: Path) -> None:
        refitter = self._trt.Refitter(self._engine, self._logger)
        parser = self._trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            raise InputError(
                f"the engine's weights cannot be read from {weights.name}: {self.last_message()}",
                hint="atlas-export rebuild BUNDLE builds it again on this machine",
            )


@cache
def _logger(trt: Any) -> tuple[Any, deque[str]]:
    """One logger a process: the library keeps the first that it is given and ignores others."""
    messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)
    return collecting_logger(trt, messages), messages
