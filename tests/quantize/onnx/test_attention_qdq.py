from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import embedding_agreement
from atlas_edge.errors import UsageError
from atlas_edge.export.engine.graphs import engine_graphs
from atlas_edge.export.graph.rules import check_graph
from atlas_edge.models.load import LoadedModel
from atlas_edge.quantize.backend import Job
from atlas_edge.quantize.onnx.attention_qdq import check_attention_fits
from atlas_edge.quantize.recipe import Recipe
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.spec import Precision


def test_a_recipe_with_attention_quantizes_both_products(
    tiny: LoadedModel,
    tiny_onnx: Path,
    calibration: list[NDArray[np.uint8]],
    held_out: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    recipe = Recipe(name="attention", smooth_alphas=(0.5,), attention=True, patch_embed=False)
    job = Job(model=tiny, graph=tiny_onnx, calibration=calibration, precision=Precision.INT8, recipe=recipe)
    graphs = engine_graphs(job, tmp_path)
    assert graphs.quantization is not None
    assert graphs.quantization["attention_products"] == 4
    found = check_graph(graphs.model, precision=Precision.INT8)
    assert (found.attention_products, found.quantized_attention_products) == (4, 4)
    exact = OnnxEncoder(tiny_onnx, tiny.spec).encode(held_out)
    agreement = embedding_agreement(exact, OnnxEncoder(graphs.model, tiny.spec).encode(held_out))
    assert agreement.cosine_median > 0.99


def test_too_many_tokens_for_fused_attention_are_refused(tiny: LoadedModel) -> None:
    check_attention_fits(tiny.spec)
    long = tiny.spec.model_copy(update={"tile_px": 224, "patch": 8, "registers": 4})
    with pytest.raises(UsageError, match="789 tokens, fused INT8 attention takes at most 512"):
        check_attention_fits(long)
