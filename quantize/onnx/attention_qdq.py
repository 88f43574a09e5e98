"""Q/DQ on the two matrix products of attention, for INT8 attention kernels; off unless a recipe asks for it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import UsageError
from atlas_edge.models.graph import load_onnx, save_onnx
from atlas_edge.quantize.onnx.half_range import largest_values
from atlas_edge.spec import EncoderSpec

INT8_MAX = 127.0
# Fused INT8 attention takes at most this many tokens.
MOST_TOKENS = 512
# Tiles, heads, tokens, and what is multiplied.
_RANK = 4


def check_attention_fits(spec: EncoderSpec) -> None:
    """Refuse an encoder with too many tokens for fused INT8 attention.

    Raises:
        UsageError: More than 512 tokens, as patch 8 has at 224 px.
    """
    if spec.patch is None:
        raise UsageError(f"{spec.name} has no attention to quantize", hint="leave attention out of the recipe")
    tokens = (spec.tile_px // spec.patch) ** 2 + 1 + spec.registers
    if tokens > MOST_TOKENS:
        raise UsageError(
            f"{spec.name} has {tokens} tokens, fused INT8 attention takes at most {MOST_TOKENS}",
            hint="leave attention out of the recipe, or use patch 14 or 16",
        )


def quantize_attention(path: Path, out: Path, tiles: NDArray[np.uint8]) -> int:
    """Insert symmetric per-tensor Q/DQ on both operands of attention's products: of two computed tensors, by head.

    Ranges are the largest values on the tiles, of attention weights, too: with the scale 1 / 127 that their bound of 1
    suggests, weights spread over 257 tokens would all round to zero.

    Args:
        path: ONNX graph in FP16, from `engine_graph`, or in FP32, from `quantize_onnx`.
        out: File to write.
        tiles: `(N, H, W, 3)` uint8 calibration tiles.

    Returns:
        How many products are quantized.
    """
    import onnx

    model = load_onnx(path)
    graph = model.graph
    types = {info.name: info.type.tensor_type.elem_type for info in graph.value_info}
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in graph.value_info}
    # Attention's have heads; those of merging tokens have none.
    products = [
        node
        for node in graph.node
        if node.op_type == "MatMul"
        and not _reads_constant(node, producers, constants)
        and ranks.get(node.output[0], _RANK) == _RANK
    ]
    operands = sorted({name for node in products for name in node.input})
    element = types.get(operands[0], onnx.TensorProto.FLOAT) if operands else onnx.TensorProto.FLOAT
    kind = np.float16 if element == onnx.TensorProto.FLOAT16 else np.float32
    peaks = largest_values(path, dict.fromkeys(operands, element), tiles, optimized=True)
    replaced: dict[str, str] = {}
    for name in operands:
        scale = max(kind(peaks[name] / INT8_MAX), np.finfo(kind).tiny)
        replaced[name] = _insert_pair(graph, name, np.asarray(scale, kind))
    for node in products:
        node.input[:] = [replaced[name] for name in node.input]
    _sort(graph)
    del graph.value_info[:]
    save_onnx(model, out)
    onnx.checker.check_model(str(out), full_check=True)
    return len(products)


def _reads_constant(node: Any, producers: dict[str, Any], constants: set[str]) -> bool:
    sources = [producers.get(name) for name in node.input]
    return any(
        name in constants or (source is not None and source.op_type == "DequantizeLinear")
        for name, source in zip(node.input, sources, strict=True)
    )


def _insert_pair(graph: Any, name: str, scale: NDArray[Any]) -> str:
    import onnx

    for suffix, value in (("scale", scale), ("zero", np.int8(0))):
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), f"{name}_{suffix}"))
    constants = [f"{name}_scale", f"{name}_zero"]
    for kind, source, result in (
        ("QuantizeLinear", name, f"{name}_int8"),
        ("DequantizeLinear", f"{name}_int8", f"{name}_dequantized"),
    ):
        graph.node.append(onnx.helper.make_node(kind, [source, *constants], [result], name=f"{name}_{kind}"))
    return f"{name}_dequantized"


def _sort(graph: Any) -> None:
    """Put nodes after what they read: pairs were appended at the end."""
    ready = {tensor.name for tensor in graph.initializer} | {info.name for info in graph.input} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        held = []
        for node in waiting:
            if ready.issuperset(node.input):
                ordered.append(node)
                ready |= set(node.output)
            else:
                held.append(node)
        assert len(held) < len(waiting), "the graph has a cycle"
        waiting = held
    del graph.node[:]
    graph.node.extend(ordered)
