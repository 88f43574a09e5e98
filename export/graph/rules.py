"""Rules that an ONNX graph must keep to become a correct and fast TensorRT engine.

They are checked before the parser sees the graph, since what the parser or the builder says about a breach names no
remedy, and since most breaches build and are merely slow or wrong on the GPU. Sources: NVIDIA's TensorRT
documentation ("Working with Quantized Types", "Working with Transformers") and what facts about this project's
graphs were measured (docs/tensorrt.md).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from atlas_edge.errors import InputError
from atlas_edge.export.graph.view import DEQUANTIZE, QUANTIZE, OnnxView, read_onnx
from atlas_edge.spec import Precision

# Fused INT8 attention takes these head sizes and at most this many tokens.
FUSED_INT8_HEAD_SIZES, FUSED_INT8_TOKENS = (16, 32, 64), 512
_QUANTIZED = {Precision.INT8, Precision.FP8}
_EXPORT_AGAIN = "export the graph again with atlas-export"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """One broken rule: which, at which node, what was found, and what mends it."""

    rule: str
    node: str
    found: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCheck:
    """What the rules found in a graph that keeps them.

    Attributes:
        opset: Version of the default operator set.
        linears: Matrix products with constant weights.
        quantized_linears: Those whose input and weight both pass a Q/DQ pair.
        attention_products: Matrix products of two computed operands.
        quantized_attention_products: Those with both operands quantized.
        casts: Cast nodes.
    """

    opset: int
    linears: int
    quantized_linears: int
    attention_products: int
    quantized_attention_products: int
    casts: int


def check_graph(path: Path, *, precision: Precision, float_linears: Sequence[str] = ()) -> GraphCheck:
    """Check every rule.

    Args:
        path: ONNX file.
        precision: What the graph is meant to be.
        float_linears: Layers that the recipe leaves unquantized on purpose; `*` matches any run of characters.

    Raises:
        InputError: The first breach, with its node and remedy, and how many more there are.
    """
    graph = read_onnx(path)
    breaches = list(find_breaches(graph, precision=precision, float_linears=float_linears))
    if breaches:
        first = breaches[0]
        more = f" (and {len(breaches) - 1} more breaches)" if len(breaches) > 1 else ""
        raise InputError(f"{path.name}: {first.rule}: node {first.node}: {first.found}{more}", hint=first.remedy)
    linears, products = graph.linears(), graph.products()
    return GraphCheck(
        opset=graph.opset,
        linears=len(linears),
        quantized_linears=sum(1 for linear in linears if linear.weight_dequantize and linear.input_dequantize),
        attention_products=len(products),
        quantized_attention_products=sum(1 for node in products if len(_dequantized_operands(graph, node)) == 2),
        casts=sum(1 for node in graph.nodes if node.op_type == "Cast"),
    )


def find_breaches(graph: OnnxView, *, precision: Precision, float_linears: Sequence[str] = ()) -> Iterator[Breach]:
    """Every breach of every rule, the fatal rules first."""
    rules: list[Callable[[OnnxView], Iterator[Breach]]] = [_uint8_input, _fp32_attention, _zero_points]
    if precision is not Precision.FP32:
        rules += [_decomposed_layer_norm, _late_attention_scale, _stray_casts]
    if precision in _QUANTIZED:
        rules += [_quantized_residuals, _quantized_attention]
    for rule in rules:
        yield from rule(graph)
    if precision in _QUANTIZED:
        yield from _linear_coverage(graph, precision, float_linears)


def _uint8_input(graph: OnnxView) -> Iterator[Breach]:
    from onnx import TensorProto

    for name, users in graph.consumers.items():
        if graph.types.get(name) != TensorProto.UINT8 or name in graph.constants:
            continue
        for node in users:
            if node.op_type not in {"Cast", "Shape", DEQUANTIZE}:
                yield Breach(
                    rule="uint8 tiles must be cast first",
                    node=node.name,
                    found=f"{node.op_type} takes the uint8 tensor {name}, which TensorRT refuses",
                    remedy=f"cast before it, as in tiles.float().permute(0, 3, 1, 2); {_EXPORT_AGAIN}",
                )


def _fp32_attention(graph: OnnxView) -> Iterator[Breach]:
    from onnx import TensorProto

    for node in graph.nodes:
        if node.op_type == "Attention" and node.domain in {"", "ai.onnx"}:
            kind = graph.stored_type(node.input[0])
            if kind not in {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
                yield Breach(
                    rule="no FP32 Attention operator",
                    node=node.name,
                    found=f"Attention (opset {graph.opset}) in FP32 has no kernel in TensorRT",
                    remedy=f"{_EXPORT_AGAIN}, which writes opset 20 without it, or use --precision fp16",
                )


def _zero_points(graph: OnnxView) -> Iterator[Breach]:
    from onnx import TensorProto

    for node in graph.nodes:
        if node.op_type not in {QUANTIZE, DEQUANTIZE} or len(node.input) < 3 or not node.input[2]:
            continue
        zero_point = graph.constant(node.input[2])
        kind = graph.stored_type(node.input[2])
        remedy = "quantize again with atlas-export, whose scales are symmetric (S8S8)"
        if zero_point is None:
            found = "its zero point is computed, not constant"
        elif kind == TensorProto.UINT8:
            found = "it quantizes to uint8, expected int8"
        elif np.any(zero_point.astype(np.float32) != 0):
            found = f"zero point {zero_point.astype(np.float32).flat[np.flatnonzero(zero_point)[0]]:.0f}, expected 0"
        else:
            continue
        yield Breach(rule="quantization must be symmetric", node=node.name, found=found, remedy=remedy)


def _decomposed_layer_norm(graph: OnnxView) -> Iterator[Breach]:
    for node in graph.nodes:
        if node.op_type != "ReduceMean":
            continue
        users = [user.op_type for name in node.output for user in graph.consumers.get(name, [])]
        source = graph.producer.get(node.input[0])
        if "Sub" in users or (source is not None and source.op_type in {"Pow", "Mul"} and "Add" in users):
            yield Breach(
                rule="LayerNormalization must be one operator",
                node=node.name,
                found="a LayerNorm written as ReduceMean, Sub, Pow, which overflows in FP16",
                remedy=f"{_EXPORT_AGAIN} (opset 17 and later keep LayerNormalization whole)",
            )


def _late_attention_scale(graph: OnnxView) -> Iterator[Breach]:
    for product in graph.products():
        for node in graph.consumers.get(product.output[0], []):
            scaled = node.op_type in {"Mul", "Div"} and any(graph.is_constant(name) for name in node.input)
            if scaled and any(user.op_type == "Softmax" for user in graph.consumers.get(node.output[0], [])):
                yield Breach(
                    rule="attention must be scaled before the first product",
                    node=node.name,
                    found=f"{node.op_type} scales the logits after Q·K, where FP16 may have overflowed",
                    remedy="scale Q and K instead (torch's scaled_dot_product_attention exports so)",
                )


def _stray_casts(graph: OnnxView) -> Iterator[Breach]:
    for node in graph.nodes:
        if node.op_type != "Cast":
            continue
        source = graph.producer.get(node.input[0])
        users = graph.consumers.get(node.output[0], [])
        # FP32 LayerNorm and Softmax inside an FP16 graph end in a Cast on purpose.
        wide = source is not None and source.op_type in {"LayerNormalization", "Softmax"}
        if source is not None and source.op_type == DEQUANTIZE:
            found = f"Cast after {source.name} keeps the product from reading INT8"
        elif any(user.op_type == QUANTIZE for user in users) and not wide:
            found = "Cast before QuantizeLinear keeps the product from writing INT8"
        elif source is not None and source.op_type == "Cast":
            found = f"Cast after Cast ({source.name})"
        else:
            continue
        yield Breach(
            rule="no Cast around Q/DQ",
            node=node.name,
            found=found,
            remedy="give the scales the type of the graph (FP16 scales in an FP16 graph); " + _EXPORT_AGAIN,
        )


def _quantized_residuals(graph: OnnxView) -> Iterator[Breach]:
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            quantized = [graph.source(node.input[0])]
        elif node.op_type == "Add" and not any(graph.is_constant(name) for name in node.input):
            quantized = [graph.source(name) for name in node.input]
        else:
            continue
        if any(source is not None and source.op_type == DEQUANTIZE for source in quantized):
            yield Breach(
                rule="the residual stream stays unquantized",
                node=node.name,
                found=f"{node.op_type} takes a dequantized tensor, which ruins a ViT's accuracy",
                remedy="quantize the inputs of Linear layers only: atlas-export --precision int8",
            )


def _quantized_attention(graph: OnnxView) -> Iterator[Breach]:
    for node in graph.products():
        dequantized = _dequantized_operands(graph, node)
        if not dequantized:
            continue
        tokens, head = _attention_size(graph, node)
        if len(dequantized) == 1:
            found = "one operand of an attention product is quantized, the other is not"
        elif head is not None and head not in FUSED_INT8_HEAD_SIZES:
            found = f"head size {head} has no fused INT8 attention (16, 32 and 64 have)"
        elif tokens is not None and tokens > FUSED_INT8_TOKENS:
            found = f"{tokens} tokens are too many for fused INT8 attention (at most {FUSED_INT8_TOKENS})"
        else:
            continue
        yield Breach(
            rule="attention is quantized only where it fuses",
            node=node.name,
            found=found,
            remedy="leave attention unquantized (the default), or use patch 14 or 16 at 224 px",
        )


def _linear_coverage(graph: OnnxView, precision: Precision, float_linears: Sequence[str]) -> Iterator[Breach]:
    # The convolution that reads pixels stays in FP16; in FP8 all do.
    convolutions = graph.convolutions()[1:] if precision is Precision.INT8 else []
    layers = [*graph.linears(), *convolutions]
    remedy = "quantize every layer (atlas-export), or name the ones to leave in float_linears"
    rule = "every Linear is quantized"
    if not layers:
        yield Breach(rule=rule, node="(none)", found="the graph has no product with constant weights", remedy="")
    for layer in layers:
        if _is_left_out(layer.name, float_linears):
            continue
        missing = [
            what
            for what, node in (("input", layer.input_dequantize), ("weight", layer.weight_dequantize))
            if node is None
        ]
        if missing:
            yield Breach(rule=rule, node=layer.name, found=f"no Q/DQ on its {' and '.join(missing)}", remedy=remedy)
        elif precision is Precision.INT8:
            scale = graph.constant(layer.weight_dequantize.input[1])
            if scale is not None and scale.size == 1:
                yield Breach(
                    rule="weights are quantized per output channel",
                    node=layer.name,
                    found="one scale for the whole weight",
                    remedy=remedy,
                )


def _is_left_out(node_name: str, patterns: Sequence[str]) -> bool:
    """Whether a recipe leaves a layer out: `blocks.3.mlp.fc2` names the node `/backbone/blocks.3/mlp/fc2/MatMul`."""
    path = f".{node_name.replace('/', '.')}."
    return any(fnmatchcase(path, f"*.{pattern}.*") for pattern in patterns)


def _dequantized_operands(graph: OnnxView, node: Any) -> list[Any]:
    sources = [graph.source(name) for name in node.input]
    return [source for source in sources if source is not None and source.op_type == DEQUANTIZE]


def _attention_size(graph: OnnxView, node: Any) -> tuple[int | None, int | None]:
    """(tokens, head size) of an attention product, None where shapes are unknown: Q·Kᵀ gives N x N, A·V N x head."""
    left, right = (graph.shapes.get(name, ()) for name in node.input)
    if len(left) < 2 or len(right) < 2:
        return None, None
    is_logits = any(
        user.op_type in {"Softmax", "Mul", "Div", "Add"} for user in graph.consumers.get(node.output[0], [])
    )
    return left[-2], (left[-1] if is_logits else right[-1])
