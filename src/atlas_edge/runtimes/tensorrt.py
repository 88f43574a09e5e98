"""TensorRT and TensorRT-RTX engines on a CUDA device."""

from pathlib import Path

from atlas_edge.encoder import Encoder
from atlas_edge.errors import RuntimeMissing
from atlas_edge.manifest import Manifest


class TensorRTEncoder:
    """An engine. Running one needs a GPU; see the bundle's ONNX file for machines without one."""

    @classmethod
    def from_bundle(cls, folder: Path, manifest: Manifest) -> Encoder:
        """Open a verified bundle.

        Raises:
            RuntimeMissing: No usable GPU.
        """
        raise RuntimeMissing(
            f"{folder}: running an engine needs an NVIDIA GPU and its driver",
            hint="export for --target openvino or onnx on a machine without one",
        )
