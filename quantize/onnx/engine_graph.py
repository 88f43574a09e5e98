"""Q/DQ graphs as TensorRT wants them: folded weights, FP16 for the rest, and the FP8 form of an INT8 graph.

The INT8 graph of `quantize_onnx` keeps float weights behind Q/DQ and computes everything else in FP32. An engine is
faster, and its bundle four times smaller, when the weights are stored quantized and the rest is FP16.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.models.graph import load_onnx, save_onnx
from atlas_edge.quantize.onnx.half import cast_onnx, inline_constants
from atlas_edge.quantize.onnx.half_range import HalfRange, cast_in_range
from atlas_edge.spec import Precision

if TYPE_CHECKING:
    import onnx

INT8_MAX, E4M3_MAX = 127.0, 448.0
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_SMALLEST_NORMAL_HALF = float(np.finfo(np.float16).smallest_normal)
_MOST_SCALE_ERROR = 0.01
# Ends the names of DequantizeLinear nodes that read a stored weight.
_FOLDED = "_weight_dq"


def engine_graph(
    int8_path: Path,
    out: Path,
    *,
    precision: Literal[Precision.INT8, Precision.FP8],
    tiles: NDArray[np.uint8] | None = None,
) -> HalfRange | None:
    """Rewrite an INT8 Q/DQ graph for TensorRT.

    - Weights are stored quantized, per output channel, as the DequantizeLinear that the product reads.
    - The convolution that reads pixels (a ViT's patch embedding, 1 % of the time) stays in FP16: its Q/DQ would stand
      between FP32 pixels and FP16. In FP8 all convolutions do.
    - A weight's scale below FP16's normal numbers gets a power of two, which is taken out again after the product:
      LayerScale, folded into the weights, makes such rows.
    - FP8 takes over the calibrated ranges: an INT8 scale of amax / 127 becomes an E4M3 scale of amax / 448
      (Micikevicius et al. 2022, arXiv:2209.05433, section 3.1).
    - Everything else is FP16; scales have the type of what they scale, so no Cast stands beside a Q/DQ pair.

    Args:
        int8_path: From `quantize_onnx`, opset 19 or later (FP8 types begin there).
        out: File to write.
        precision: INT8 or FP8.
        tiles: `(N, H, W, 3)` uint8; a few calibration tiles that say what must stay in FP32. None: nothing does.

    Returns:
        What was measured on `tiles`.

    Raises:
        InputError: The graph has no product to quantize, or a scale or weight does not fit into FP16.
    """
    model = load_onnx(int8_path)
    inline_constants(model.graph)
    graph = _Graph(model.graph)
    graph.drop_pairs_before_convolutions(all_of_them=precision is Precision.FP8)
    graph.drop_casts_without_effect()
    if precision is Precision.FP8:
        graph.rescale_to_e4m3()
    folded = graph.fold_weights()
    graph.drop_unused()
    if not folded:
        what = "matrix product" if precision is Precision.FP8 else "matrix product or convolution behind the first"
        raise InputError(
            f"the network has no {what} that {precision.value} could quantize",
            hint="use --precision int8" if precision is Precision.FP8 else "use --precision fp16",
        )
    graph.lift_weight_scales()
    graph.check_activation_scales()
    del model.graph.value_info[:]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        full = Path(folder) / "full.onnx"
        save_onnx(model, full)
        if tiles is not None:
            return cast_in_range(full, out, tiles)
        cast_onnx(full, out, Precision.FP16)
    return None


def fold_weights(path: Path, out: Path) -> None:
    """Write a Q/DQ graph that stores its constant weights as the integers that they are rounded to.

    What it computes stays.

    Args:
        path: From `quantize_onnx`.
        out: File to write.
    """
    model = load_onnx(path)
    inline_constants(model.graph)
    graph = _Graph(model.graph)
    graph.fold_weights()
    graph.drop_unused()
    save_onnx(model, out)


class _Graph:
    """Edits of one graph. Tensors keep their names, so edits can follow each other."""

    def __init__(self, graph: "onnx.GraphProto") -> None:
        self.graph = graph
        typed = [*graph.value_info, *graph.output, *graph.input]
        self.types = {info.name: info.type.tensor_type.elem_type for info in typed}

    def drop_pairs_before_convolutions(self, *, all_of_them: bool) -> None:
        """Let convolutions, or those alone that read pixels, read what their Q/DQ pairs read."""
        producers = self._producers()
        pixels = {"tiles"}
        for node in self.graph.node:
            reads_pixels = bool(pixels & set(node.input))
            if reads_pixels and node.op_type not in {"Conv", "MatMul", "Gemm"}:
                pixels |= set(node.output)
            if node.op_type != "Conv" or not (reads_pixels or all_of_them):
                continue
            for position, name in enumerate(node.input):
                dequantize = producers.get(name)
                if dequantize is not None and dequantize.op_type == _DEQUANTIZE:
                    node.input[position] = producers[dequantize.input[0]].input[0]

    def drop_casts_without_effect(self) -> None:
        """Remove casts to the type that a tensor already has."""
        outputs = {info.name for info in self.graph.output}
        for node in [node for node in self.graph.node if node.op_type == "Cast"]:
            source, result = node.input[0], node.output[0]
            if self.types.get(source) != node.attribute[0].i:
                continue
            if result in outputs:
                # The output's name must stay: its producer takes it over.
                self._rename(source, result)
            else:
                self._rename(result, source)
            self.graph.node.remove(node)

    def rescale_to_e4m3(self) -> None:
        """Give every Q/DQ pair E4M3 zero points and scales for the same range."""
        import onnx

        pairs = [node for node in self.graph.node if node.op_type in {_QUANTIZE, _DEQUANTIZE}]
        scales = {name: self._array(name) for name in {node.input[1] for node in pairs}}
        for name, scale in scales.items():
            self._replace(name, (scale * (INT8_MAX / E4M3_MAX)).astype(np.float32))
            zeros = np.zeros(scale.size)
            zero = onnx.helper.make_tensor(f"{name}_e4m3_zero", onnx.TensorProto.FLOAT8E4M3FN, scale.shape, zeros)
            self.graph.initializer.append(zero)
        for node in pairs:
            scale_name = node.input[1]
            del node.input[2:]
            node.input.append(f"{scale_name}_e4m3_zero")

    def fold_weights(self) -> int:
        """Store constant weights quantized, those of products transposed; returns how many layers read one."""
        import onnx

        producers = self._producers()
        constants = {tensor.name for tensor in self.graph.initializer}
        folded = 0
        for node in list(self.graph.node):
            pair = _weight_pair(producers, node) if node.op_type in {"MatMul", "Gemm", "Conv"} else None
            if pair is None or pair.quantize.input[0] not in constants:
                continue
            name = f"{pair.quantize.input[0]}_quantized"
            if name not in constants:
                constants.add(name)
                self.graph.initializer.append(self._quantized(pair, name))
            dequantize = onnx.helper.make_node(
                _DEQUANTIZE,
                [name, *pair.dequantize.input[1:]],
                [f"{node.name}_weight"],
                name=f"{node.name}{_FOLDED}",
                axis=1 - pair.axis if pair.turned else pair.axis,
            )
            self.graph.node.insert(0, dequantize)
            node.input[1] = dequantize.output[0]
            folded += 1
        return folded

    def lift_weight_scales(self) -> None:
        """Bring scales of weights to FP16's normal numbers by powers of two, taken out again after the product."""
        import onnx

        readers = {name: node for node in self.graph.node for name in node.input}
        for dequantize in [node for node in self.graph.node if node.name.endswith(_FOLDED)]:
            scale = self._array(dequantize.input[1])
            # Rows that are beyond 2^24 times too small are zero beside all others.
            steps = np.ceil(np.log2(_SMALLEST_NORMAL_HALF / np.maximum(scale, np.finfo(np.float32).tiny)))
            power = np.exp2(np.clip(steps, 0, 24)).astype(np.float32)
            if not (power > 1).any():
                continue
            product = readers[dequantize.output[0]]
            lifted, back = f"{dequantize.input[1]}_lifted_{product.name}", f"{product.name}_back"
            self.graph.initializer.append(onnx.numpy_helper.from_array(scale * power, lifted))
            dequantize.input[1] = lifted
            inverse = 1 / power if product.op_type != "Conv" else (1 / power).reshape(1, -1, 1, 1)
            self.graph.initializer.append(onnx.numpy_helper.from_array(inverse, back))
            self._multiply_after(product, back)

    def check_activation_scales(self) -> None:
        """Refuse scales of activations that FP16, near its smallest numbers, would change by more than 1 %."""
        for node in self.graph.node:
            if node.op_type != _QUANTIZE:
                continue
            scale = self._array(node.input[1])
            if float(np.abs(scale.astype(np.float16) / scale - 1).max()) > _MOST_SCALE_ERROR:
                raise InputError(
                    f"{node.name}: a scale of {float(scale.min()):.1e} is {float(np.float16(scale.min())):.1e} in FP16",
                    hint="calibrate on more tiles, or use --precision fp16",
                )

    def drop_unused(self) -> None:
        """Remove nodes and initializers that nothing reads."""
        needed = {info.name for info in self.graph.output}
        for node in reversed(list(self.graph.node)):
            if needed & set(node.output):
                needed |= set(node.input)
            else:
                self.graph.node.remove(node)
        kept = [tensor for tensor in self.graph.initializer if tensor.name in needed]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _quantized(self, pair: "_WeightPair", name: str) -> "onnx.TensorProto":
        import onnx

        weight, scale = self._array(pair.quantize.input[0]), self._array(pair.quantize.input[1])
        axes = [axis for axis in range(weight.ndim) if axis != pair.axis]
        scaled = weight / (scale if scale.size == 1 else np.expand_dims(scale, axes))
        scaled = scaled.T if pair.turned else scaled
        zero = next(tensor for tensor in self.graph.initializer if tensor.name == pair.quantize.input[2])
        if zero.data_type == onnx.TensorProto.FLOAT8E4M3FN:
            return _e4m3(scaled, name)
        return onnx.numpy_helper.from_array(np.clip(np.rint(scaled), -128, 127).astype(np.int8), name)

    def _multiply_after(self, product: Any, factor: str) -> None:
        """Multiply what a product computes, or a convolution without its bias, by a constant."""
        import onnx

        result, position = product.output[0], list(self.graph.node).index(product)
        steps = [("Mul", factor)]
        if len(product.input) > 2:
            bias = product.input.pop()
            shaped = self._array(bias).reshape(self._array(factor).shape)
            self.graph.initializer.append(onnx.numpy_helper.from_array(shaped, f"{product.name}_bias"))
            steps.append(("Add", f"{product.name}_bias"))
        product.output[0] = f"{product.name}_plain"
        name = product.output[0]
        for count, (kind, constant) in enumerate(steps, 1):
            out = result if count == len(steps) else f"{product.name}_{kind.lower()}"
            node = onnx.helper.make_node(kind, [name, constant], [out], name=f"{product.name}_{kind}")
            self.graph.node.insert(position + count, node)
            name = out

    def _producers(self) -> dict[str, Any]:
        return {name: node for node in self.graph.node for name in node.output}

    def _array(self, name: str) -> NDArray[Any]:
        import onnx

        for tensor in self.graph.initializer:
            if tensor.name == name:
                return np.asarray(onnx.numpy_helper.to_array(tensor))
        raise InputError(f"{name} is computed, expected a constant scale or weight", hint="quantize the graph again")

    def _replace(self, name: str, value: NDArray[Any]) -> None:
        import onnx

        for tensor in self.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))

    def _rename(self, old: str, new: str) -> None:
        for node in self.graph.node:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == old:
                        names[position] = new


@dataclass(frozen=True, slots=True)
class _WeightPair:
    """The Q/DQ pair of a weight; `axis` is that of the output channels, `turned` that a Transpose follows."""

    quantize: Any
    dequantize: Any
    axis: int
    turned: bool


def _weight_pair(producers: dict[str, Any], product: Any) -> _WeightPair | None:
    dequantize = producers.get(product.input[1])
    turned = dequantize is not None and dequantize.op_type == "Transpose"
    if dequantize is not None and turned:
        dequantize = producers.get(dequantize.input[0])
    if dequantize is None or dequantize.op_type != _DEQUANTIZE:
        return None
    quantize = producers.get(dequantize.input[0])
    if quantize is None or quantize.op_type != _QUANTIZE:
        return None
    default = 0 if product.op_type == "Conv" else 1
    axis = next((attribute.i for attribute in dequantize.attribute if attribute.name == "axis"), default)
    return _WeightPair(quantize, dequantize, axis, turned)


def _e4m3(values: NDArray[Any], name: str) -> "onnx.TensorProto":
    import ml_dtypes
    import onnx

    rounded = np.clip(values, -E4M3_MAX, E4M3_MAX).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    raw = np.ascontiguousarray(rounded).tobytes()
    return onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT8E4M3FN, values.shape, raw, raw=True)
