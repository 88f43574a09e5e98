"""How much of a GPU's memory a step took, as the driver counts it."""

import threading
from typing import Any

_PERIOD_S = 0.05


class GpuWatch:
    """Within the block, the most memory in use on a GPU beyond what was in use before.

    The driver counts everything: the CUDA context, libraries' workspaces, other programs. Nothing is known where
    NVIDIA's management library is not installed or does not answer.

    Args:
        name: Of the GPU, as the driver says it: CUDA and the management library count devices in different orders.
    """

    def __init__(self, name: str) -> None:
        self.added_bytes: int | None = None
        self._name = name
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "GpuWatch":
        found = _find(self._name)
        if found is not None:
            self._thread = threading.Thread(target=self._watch, args=found, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, library: Any, handle: Any) -> None:
        try:
            before = int(library.nvmlDeviceGetMemoryInfo(handle).used)
            self.added_bytes = 0
            while not self._stop.wait(_PERIOD_S):
                used = int(library.nvmlDeviceGetMemoryInfo(handle).used)
                self.added_bytes = max(self.added_bytes, used - before)
        except library.NVMLError:
            self.added_bytes = None


def driver_version() -> str | None:
    """Of NVIDIA's driver, such as `580.65.06`; None where nothing answers."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None


def _find(name: str) -> tuple[Any, Any] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if str(pynvml.nvmlDeviceGetName(handle)) == name:
                return pynvml, handle
    except pynvml.NVMLError:
        pass
    return None
