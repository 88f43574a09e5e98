"""From PyTorch to an ONNX file: one graph that every target starts from."""

import copy
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.models.weight_file import bytes_of, named_errors, weight_file
from atlas_edge.spec import INPUT, OUTPUT, TOKENS, EncoderSpec

if TYPE_CHECKING:
    import onnx
    from torch import nn

# 20 keeps Gelu whole (17 rewrites it to Erf); from 23 on Attention is fused, which TensorRT-RTX refuses in FP32.
OPSET = 20
# Protobuf's limit of 2 GiB, with room for the graph itself.
_ONE_FILE_BYTES = 1_900_000_000


def export_onnx(
    module: "nn.Module",
    spec: EncoderSpec,
    path: Path,
    *,
    batch: int | None = None,
    fold: bool = True,
    dynamo: bool = True,
) -> Path:
    """Write the encoder as ONNX: input `tiles` `(B, H, W, 3)` uint8, output `embedding` `(B, D)` float32.

    A module that `gives_tokens` has a second output, `tokens` `(B, N, C)` float32.

    A vision transformer that can be folded is written as it is when folded, which takes a moment; others are traced.

    Args:
        module: Takes uint8 tiles, in eval mode.
        spec: Gives H, W.
        path: File to write. Weights beyond protobuf's limit go to `<path>.data` beside it.
        batch: Fixed batch size; None leaves it dynamic.
        fold: Without, a vision transformer is traced, too: what other programs are given to quantize.
        dynamo: PyTorch's graph exporter. Fake-quantized modules (ModelOpt) need the older one, `False`, and are never
            folded.

    Returns:
        `path`.
    """
    import onnx
    import torch

    bytes_of_weights = sum(p.numel() * p.element_size() for p in module.parameters())
    if fold and dynamo and _write_folded(module, spec, path, batch, beside=bytes_of_weights > _ONE_FILE_BYTES):
        return path
    outputs = [OUTPUT]
    if getattr(module, "gives_tokens", False):
        module, outputs = _traced_with_tokens(module), [OUTPUT, TOKENS]
    example = torch.zeros((batch or 2, spec.tile_px, spec.tile_px, 3), dtype=torch.uint8)
    options: dict[str, Any] = {}
    if dynamo:
        dynamic = {0: torch.export.Dim("batch", min=1, max=4096)} if batch is None else None
        options["dynamic_shapes"] = (dynamic,)
        options["external_data"] = bytes_of_weights > _ONE_FILE_BYTES
    elif batch is None:
        options["dynamic_axes"] = {name: {0: "batch"} for name in (INPUT, *outputs)}
    # In a folder of its own: beyond 2 GiB the older exporter writes each weight to a file.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        with warnings.catch_warnings(), torch.no_grad():
            # Known and harmless; errors are raised.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                str(written),
                input_names=[INPUT],
                output_names=outputs,
                opset_version=OPSET,
                dynamo=dynamo,
                verbose=False,
                **options,
            )
        model = onnx.load(written, load_external_data=False)
        _strip_metadata(model)
        save_onnx(model, path, weights_from=written.parent)
    return path


def load_onnx(path: Path, *, weights: bool = True) -> "onnx.ModelProto":
    """Read a graph and infer the types and shapes of what it computes.

    Args:
        path: ONNX file, with `<path>.data` beside it where its weights are beyond protobuf's limit.
        weights: Read what lies beside the file, too. Without, such weights stay where they are.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    # Inference serializes the model, which protobuf refuses beyond 2 GiB: weights beside the file come after it.
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), data_prop=True)
    if weights:
        load_external_data_for_model(model, str(path.parent))
    return model


def save_onnx(model: "onnx.ModelProto", path: Path, *, weights_from: Path | None = None) -> None:
    """Write a graph whose weights are found wherever its folder goes: in it, or in `<path>.data` beside it.

    Args:
        model: It holds no weights afterwards where they went beside the file.
        path: File to write; one of the same name is replaced together with its weights.
        weights_from: Folder of the weights that are not in memory.
    """
    from onnx.external_data_helper import load_external_data_for_model

    folder = weights_from or path.parent
    if sum(map(bytes_of, model.graph.initializer)) <= _ONE_FILE_BYTES:
        load_external_data_for_model(model, str(folder))
        _write(model, path)
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        return
    with weight_file(path) as beside:
        for tensor in model.graph.initializer:
            beside.take(tensor, folder=folder)
    _write(model, path)


def copy_onnx(path: Path, to: Path, *, notes: Mapping[str, str] | None = None) -> None:
    """Copy a graph with its weights, under another name.

    Args:
        path: ONNX file.
        to: File to write.
        notes: Metadata of the copy.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    if notes is not None:
        onnx.helper.set_model_props(model, dict(notes))
    save_onnx(model, to, weights_from=path.parent)


def onnx_bytes(path: Path) -> int:
    """Bytes of a graph and of its weights, wherever they lie."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def open_watched(path: Path, values: Mapping[str, int], *, optimized: bool) -> Any:
    """An ONNX Runtime session on the CPU that also gives out what a graph computes inside.

    Args:
        path: ONNX file.
        values: Name and `onnx.TensorProto` element type of each tensor to give out.
        optimized: Whether ONNX Runtime may fuse nodes; it may then fuse watched tensors away from their neighbours.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    outputs = {info.name for info in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in values.items() if name not in outputs
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def largest_difference(module: "nn.Module", path: Path, tiles: NDArray[np.uint8]) -> float:
    """Worst 1 - cosine between the module in PyTorch and its ONNX graph in ONNX Runtime, over `tiles`.

    Over their patch tokens, too, where the module gives them: each is compared with that of timm's `forward_features`.
    """
    import onnxruntime
    import torch

    run: Any = _traced_with_tokens(module) if getattr(module, "gives_tokens", False) else module
    with torch.inference_mode():
        computed = run(torch.from_numpy(tiles))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = zip(*(session.run(None, {INPUT: tile[None]}) for tile in tiles), strict=True)
    worst = 0.0
    for tensor, found in zip(computed if isinstance(computed, tuple) else (computed,), parts, strict=True):
        rows = [np.asarray(part, np.float64).reshape(-1, tensor.shape[-1]) for part in (tensor, np.concatenate(found))]
        norms = np.linalg.norm(rows[0], axis=1) * np.linalg.norm(rows[1], axis=1)
        worst = max(worst, float(np.max(1.0 - np.sum(rows[0] * rows[1], axis=1) / norms)))
    return worst


def _traced_with_tokens(module: Any) -> Any:
    """The module with `forward_with_tokens` for its `forward`; layers keep the names by which they are known."""
    traced = copy.copy(module)
    traced.forward = module.forward_with_tokens
    return traced


def _write_folded(module: "nn.Module", spec: EncoderSpec, path: Path, batch: int | None, *, beside: bool) -> bool:
    """Write a network as it is when folded, block by block; False where it cannot be folded."""
    from atlas_edge.models.folding.onnx_graph import folded_graph
    from atlas_edge.models.folding.vit import fold_in_pieces

    pieces = fold_in_pieces(module)
    if pieces is None:
        return False
    folded, blocks = pieces
    names = INPUT, OUTPUT, TOKENS
    options: dict[str, Any] = {"tile_px": spec.tile_px, "batch": batch, "names": names, "opset": OPSET}
    if not beside:
        save_onnx(folded_graph(folded, blocks, **options), path)
        return True
    with weight_file(path) as weights:
        model = folded_graph(folded, blocks, keep=weights.take, **options)
    _write(model, path)
    return True


def _write(model: "onnx.ModelProto", path: Path) -> None:
    import onnx

    with named_errors(path):
        onnx.save(model, path)


def _strip_metadata(model: "onnx.ModelProto") -> None:
    """Remove the exporter's notes (Python stack traces with file names of the machine).

    What is worth keeping of them goes into the names of nodes: `backbone.blocks.3.mlp.fc2/node_MatMul_71` says which
    module computes it. Weights cannot say it: equal ones are merged, and transposed ones get new names.
    """
    _name_by_module(model.graph)
    _strip(model.graph)
    for function in model.functions:
        _strip(function)
    del model.metadata_props[:]


def _name_by_module(graph: Any) -> None:
    import ast

    for node in graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        # From the outermost module to the operation itself.
        if len(scopes) > 1 and scopes[-2]:
            node.name = f"{scopes[-2]}/{node.name}"


def _strip(graph: Any) -> None:
    for holder in (*graph.node, *getattr(graph, "value_info", ()), *getattr(graph, "initializer", ())):
        holder.doc_string = ""
        if hasattr(holder, "metadata_props"):
            del holder.metadata_props[:]
    if hasattr(graph, "metadata_props"):
        del graph.metadata_props[:]
