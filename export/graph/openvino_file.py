"""OpenVINO's own files."""

from pathlib import Path
from typing import Any

from atlas_edge.errors import InputError


def save_openvino(model: Any, path: Path, *, half: bool = False) -> None:
    """Write an `openvino.Model`.

    Args:
        model: See `openvino.save_model`.
        path: File to write; its weights go beside it.
        half: Store weights in FP16.

    Raises:
        InputError: The disk is full, or the folder cannot be written.
    """
    import openvino

    try:
        openvino.save_model(model, str(path), compress_to_fp16=half)
    except RuntimeError as error:  # its streams do not say what the system refused
        hint = "check free disk space and permissions of that path"
        raise InputError(f"{path} cannot be written: {error}", hint=hint) from error
