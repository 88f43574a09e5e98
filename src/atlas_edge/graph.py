"""From PyTorch to an ONNX file: one graph that every target starts from."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.spec import EncoderSpec

if TYPE_CHECKING:
    from torch import nn

INPUT = "tiles"
OUTPUT = "embedding"
# 20 keeps Gelu whole (17 rewrites it to Erf); from 23 on Attention is fused, which TensorRT-RTX refuses in FP32.
OPSET = 20
# Protobuf's limit of 2 GiB, with room for the graph itself.
_ONE_FILE_BYTES = 1_900_000_000


def export_onnx(
    module: "nn.Module", spec: EncoderSpec, path: Path, *, batch: int | None = None, dynamo: bool = True
) -> Path:
    """Write the encoder as ONNX: input `tiles` `(B, H, W, 3)` uint8, output `embedding` `(B, D)` float32.

    Args:
        module: Takes uint8 tiles, in eval mode.
        spec: Gives H, W.
        path: File to write. Weights beyond protobuf's limit go to `<path>.data` beside it.
        batch: Fixed batch size; None leaves it dynamic.
        dynamo: PyTorch's graph exporter. Fake-quantized modules (ModelOpt) need the older one, `False`.

    Returns:
        `path`.
    """
    import torch

    example = torch.zeros((batch or 2, spec.tile_px, spec.tile_px, 3), dtype=torch.uint8)
    bytes_of_weights = sum(p.numel() * p.element_size() for p in module.parameters())
    options: dict[str, Any] = {}
    if dynamo:
        dynamic = {0: torch.export.Dim("batch", min=1, max=4096)} if batch is None else None
        options["dynamic_shapes"] = (dynamic,)
        options["external_data"] = bytes_of_weights > _ONE_FILE_BYTES
    elif batch is None:
        options["dynamic_axes"] = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=dynamo,
            **options,
        )
    if bytes_of_weights <= _ONE_FILE_BYTES:
        strip_metadata(path)
    return path


def strip_metadata(path: Path) -> None:
    """Remove the exporter's notes (Python stack traces with file names of the machine) from an ONNX file.

    What is worth keeping of them goes into the names of nodes: `backbone.blocks.3.mlp.fc2/node_MatMul_71` says which
    module computes it. Weights cannot say it: equal ones are merged, and transposed ones get new names.
    """
    import onnx

    model = onnx.load(path)
    _name_by_module(model.graph)
    _strip(model.graph)
    for function in model.functions:
        _strip(function)
    del model.metadata_props[:]
    onnx.save(model, path)


def largest_difference(module: "nn.Module", path: Path, tiles: NDArray[np.uint8]) -> float:
    """Worst 1 - cosine between the module in PyTorch and its ONNX graph in ONNX Runtime, over `tiles`."""
    import onnxruntime
    import torch

    with torch.inference_mode():
        expected = module(torch.from_numpy(tiles)).numpy().astype(np.float64)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(None, {INPUT: tile[None]})[0] for tile in tiles]).astype(np.float64)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return float(np.max(1.0 - np.sum(expected * found, axis=1) / norms))


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporters print progress and known-harmless warnings; errors are raised.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
