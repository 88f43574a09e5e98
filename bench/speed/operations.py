"""How many operations an encoder needs for one tile, counted in its graph."""

import math
from pathlib import Path
from typing import Any

from atlas_edge.bundle import MANIFEST, model_folder, read_manifest
from atlas_edge.encoder import Encoder
from atlas_edge.runtimes.torch import TorchEncoder
from atlas_edge.spec import EncoderSpec

_READ_BY_OPENVINO = (".xml", ".onnx")


def gop_per_tile(given: str, encoder: Encoder) -> float | None:
    """Multiplications and additions of matrix products and convolutions, 10^9 a tile.

    Args:
        given: What the encoder was opened from.
        encoder: The encoder.

    Returns:
        None where nothing here can read the graph: an engine, or an ONNX graph without OpenVINO.
    """
    folder = Path(given)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if not manifest.execution.model_file.endswith(_READ_BY_OPENVINO):
            return None
        return _of_graph(model_folder(folder) / manifest.execution.model_file, encoder.spec)
    return _of_module(encoder.module, encoder.spec) if isinstance(encoder, TorchEncoder) else None


def _of_graph(path: Path, spec: EncoderSpec) -> float | None:
    try:
        import openvino
    except ImportError:
        return None
    model = openvino.Core().read_model(str(path))
    model.reshape({model.inputs[0]: [1, spec.tile_px, spec.tile_px, 3]})
    return float(sum(_operations(node) for node in model.get_ordered_ops())) / 1e9


def _operations(node: Any) -> float:
    """2 x outputs x terms of each sum, or 0 for a node that is no product."""
    kind = node.get_type_name()
    if kind not in ("MatMul", "Convolution", "GroupConvolution"):
        return 0.0
    outputs = float(math.prod(node.get_output_shape(0)))
    if kind == "MatMul":
        shape = list(node.get_input_shape(0))
        return 2.0 * outputs * float(shape[-2 if node.get_attributes()["transpose_a"] else -1])
    # Filters: (outputs, inputs, height, width), with the group before them in a grouped convolution.
    terms = list(node.get_input_shape(1))[1 if kind == "Convolution" else 2 :]
    return 2.0 * outputs * float(math.prod(terms))


def _of_module(module: Any, spec: EncoderSpec) -> float | None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tile = torch.zeros((1, spec.tile_px, spec.tile_px, 3), dtype=torch.uint8)
    # The counter does not know the CPU's fused attention: its two products are counted when it is taken apart.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(tile)
    return float(counter.get_total_flops()) / 1e9
