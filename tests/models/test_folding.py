"""The folded network computes what the original computes."""

from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.layers import GluMlp, LayerNorm, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.models.folding.known import unfoldable_part
from atlas_edge.models.folding.onnx_graph import folded_graph
from atlas_edge.models.folding.vit import FoldedVit, fold_vit
from atlas_edge.models.published.known import Known, known_encoders
from atlas_edge.quantize.numerics.stages import unfittable_part
from atlas_edge.spec import EncoderSpec, Pooling

VIT = "vit_tiny_patch16_224"

TILES = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _module(pooling: Pooling = "cls", architecture: str = VIT, **options: Any) -> EncoderModule:
    import timm

    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
    backbone = timm.create_model(architecture, pretrained=False, **(settings | options))
    torch.manual_seed(1)
    for parameter in backbone.parameters():
        # Far from the initial zeros and ones: a weight that is left out must show.
        parameter.data += 0.3 * torch.randn_like(parameter)
    spec = EncoderSpec(
        name="test",
        architecture=architecture,
        embed_dim=96 if pooling == "cls+mean" else 48,
        tile_px=32,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        pooling=pooling,
        patch=8,
    )
    return EncoderModule(backbone, spec).eval()


def _with_head_norms(module: EncoderModule, norm: type[nn.Module]) -> EncoderModule:
    for block in module.backbone.blocks:
        for name in ("q_norm", "k_norm"):
            part = norm(16)
            part.weight.data += 0.3 * torch.randn(16)
            setattr(block.attn, name, part)
    return module


def _error(folded: FoldedVit | None, module: EncoderModule) -> float:
    """Relative to the embedding's size."""
    assert folded is not None
    with torch.inference_mode():
        expected, found = module(TILES), folded(TILES)
    return float((found - expected).norm() / expected.norm())


def _onnx_error(module: EncoderModule, batch: int | None = None) -> float:
    """Of the graph that is written from the folded network, in ONNX Runtime."""
    folded = fold_vit(module)
    assert folded is not None
    with torch.inference_mode():
        graph = folded_graph(folded, tile_px=32, batch=batch, names=("tiles", "embedding"), opset=20)
        expected = module(TILES).numpy()
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"tiles": TILES.numpy()})[0]
    assert found.shape == tuple(session.get_outputs()[0].shape if batch else expected.shape)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.1},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
        {"reg_tokens": 8, "no_embed_class": False},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"global_pool": "avg"},
        {"global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True},
        {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True},
        {"global_pool": "avg", "fc_norm": False, "reg_tokens": 2},
        {"fc_norm": True},
        {"global_pool": "map"},
        {"final_norm": False},
        {"norm_layer": partial(LayerNorm, affine=False)},
        {"dynamic_img_size": True},
        {"dynamic_img_size": True, "dynamic_img_pad": True, "reg_tokens": 2},
        {"pre_norm": True, "reg_tokens": 2},
        {"act_layer": nn.SiLU},
        {"act_layer": "quick_gelu"},
        {"act_layer": "gelu_tanh"},
        {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "init_values": 0.1},
        {"mlp_layer": GluMlp, "act_layer": nn.GELU},
        {"mlp_layer": GluMlp, "act_layer": nn.Sigmoid, "proj_bias": False},
        {"mlp_layer": SwiGLU, "act_layer": nn.SiLU},
        {"scale_mlp_norm": True},
        {"scale_attn_norm": True},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
@pytest.mark.parametrize("pooling", ["cls", "avg", "cls+mean"])
def test_folding_keeps_the_embedding(options: dict[str, Any], pooling: Pooling) -> None:
    module = _module(pooling, **options)
    assert _error(fold_vit(module), module) < 1e-5
    assert _onnx_error(module) < 1e-5


@pytest.mark.parametrize("registers", [0, 2])
def test_no_class_token(registers: int) -> None:
    options = {"class_token": False, "global_pool": "avg", "reg_tokens": registers}
    module = _module("avg", **options)
    assert _error(fold_vit(module), module) < 1e-5
    assert _onnx_error(module) < 1e-5
    assert fold_vit(_module("cls", **options)) is None


@pytest.mark.parametrize("norm", [LayerNorm, RmsNorm])
@pytest.mark.parametrize("architecture", [VIT, "vit_small_patch16_dinov3"])
def test_norms_of_queries_and_keys(norm: type[nn.Module], architecture: str) -> None:
    module = _with_head_norms(_module("cls", architecture), norm)
    assert _error(fold_vit(module), module) < 1e-5
    assert _onnx_error(module) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("eva_giant_patch14_224", {}),
        ("eva02_small_patch14_224", {}),  # SwiGLU with a norm inside
        ("eva02_base_patch16_clip_224", {}),  # a norm inside attention, too; separate query, key and value
        ("vit_small_patch16_dinov3", {}),
        ("vit_small_patch16_dinov3_qkvb", {}),
        ("vit_small_plus_patch16_dinov3", {}),  # SwiGLU
        ("vit_small_patch16_dinov3", {"num_reg_tokens": 8}),
        ("vit_small_patch16_rope_224", {}),  # neighbours are turned
        ("vit_small_patch16_rope_mixed_ape_224", {}),  # each head of each block by angles of its own
        ("vit_pe_core_small_patch16_384", {}),  # a norm before the blocks
        ("vit_pe_spatial_small_patch16_512", {}),  # none after them
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
@pytest.mark.parametrize("pooling", ["cls", "avg", "cls+mean"])
def test_forms_of_eva(architecture: str, options: dict[str, Any], pooling: Pooling) -> None:
    module = _module(pooling, architecture, depth=2, **options)
    assert _error(fold_vit(module), module) < 1e-5
    assert _onnx_error(module) < 1e-5


def test_a_fixed_batch_is_written_into_the_graph() -> None:
    assert _onnx_error(_module("cls+mean", reg_tokens=2), batch=3) < 1e-5


def test_nodes_are_called_by_their_module() -> None:
    folded = fold_vit(_module("cls", depth=1))
    assert folded is not None
    nodes = folded_graph(folded, tile_px=32, batch=None, names=("a", "b"), opset=20).graph.node
    products = [node.name.partition("/")[0] for node in nodes if node.op_type == "MatMul"]
    leaves = ("attn.q", "attn.k", "attn.v", "attn", "attn", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert products == [f"backbone.blocks.0.{leaf}" for leaf in leaves]


@pytest.mark.parametrize(
    ("architecture", "norm"),
    [
        (VIT, None),
        (VIT, LayerNorm),
        ("vit_small_patch16_rope_mixed_224", None),
        ("vit_small_patch16_dinov3", LayerNorm),
    ],
)
def test_queries_are_scaled_against_keys_at_no_cost(architecture: str, norm: type[nn.Module] | None) -> None:
    module = _module("avg", architecture, depth=1)
    if norm is not None:
        _with_head_norms(module, norm)
    folded = fold_vit(module)
    assert folded is not None
    attention = folded.blocks[0].attn
    with torch.no_grad():
        attention.scale_queries(attention.together(0.5 + torch.rand(48)))
    assert _error(folded, module) < 1e-5
    if attention.rotation is not None:
        with torch.no_grad():
            attention.scale_queries(0.5 + torch.rand(48))
        assert _error(folded, module) > 1e-4


@pytest.mark.parametrize("pool", ["map", "max", "avgmax"])
def test_a_pooling_of_the_network_s_own_is_left_alone(pool: Pooling) -> None:
    module = _module(pool, global_pool=pool)
    assert unfoldable_part(module) == "it pools in a way of its own"
    assert fold_vit(module) is None


def test_the_last_block_computes_the_cls_token_alone() -> None:
    folded = fold_vit(_module("cls"))
    assert folded is not None
    shapes = _output_shapes(folded)
    assert shapes["blocks.2.mlp.fc1"][1] == 1
    assert shapes["blocks.2.attn.k"][1] == shapes["blocks.1.mlp.fc1"][1] == 17
    pooled = fold_vit(_module("avg"))
    assert pooled is not None
    assert _output_shapes(pooled)["blocks.2.mlp.fc1"][1] == 17


def test_a_block_names_what_its_products_read() -> None:
    folded = fold_vit(_module("cls", depth=2, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU))
    assert folded is not None
    qkv, *others = folded.blocks[0].inputs
    assert (qkv.products, qkv.linear_in) == (("attn.q", "attn.k", "attn.v"), None)
    assert [(read.products, read.linear_in) for read in others] == [
        (("attn.proj",), "attn.v"),
        (("mlp.fc1_g", "mlp.fc1_x"), None),
        (("mlp.fc2",), "mlp.fc1_x"),
    ]
    assert [read.products for read in folded.blocks[1].inputs][:2] == [("attn.q",), ("attn.k", "attn.v")]
    plain, normed = fold_vit(_module("avg")), fold_vit(_module("avg", "eva02_base_patch16_clip_224"))
    assert plain is not None and normed is not None
    assert plain.blocks[0].inputs[-1].linear_in is None
    # What a norm makes is linear in nothing.
    assert [read.linear_in for read in normed.blocks[0].inputs] == [None] * 4


@pytest.mark.parametrize(
    ("architecture", "options", "part"),
    [
        (VIT, {"pos_embed": "none"}, "it has no position embedding"),
        (VIT, {"norm_layer": nn.Identity}, "blocks.0.norm1 is a Identity"),
        (VIT, {"norm_layer": RmsNorm}, "blocks.0.norm1 is a RmsNorm"),
        (VIT, {"act_layer": nn.Hardswish}, "blocks.0.mlp.act is a Hardswish"),
        (VIT, {"block_fn": ResPostBlock}, "blocks.0 is a ResPostBlock"),
        (VIT, {"attn_layer": "diff", "num_heads": 2}, "blocks.0.attn is a DiffAttention"),
        ("eva02_enormous_patch14_clip_224", {}, "blocks.0 is a EvaBlockPostNorm"),
        ("beit_base_patch16_224", {}, "Beit is no plain vision transformer"),
        # Two heads that are averaged; a convolutional network before the patches.
        ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled is no plain vision transformer"),
        ("vit_tiny_r_s16_p8_224", {"patch_size": 1}, "patch_embed is a HybridEmbed"),
    ],
)
def test_what_folding_does_not_know_is_named(architecture: str, options: dict[str, Any], part: str) -> None:
    module = _module("cls", architecture, **options)
    assert unfoldable_part(module) == part
    assert fold_vit(module) is None


def test_what_is_no_encoder_is_left_alone() -> None:
    assert fold_vit(nn.Linear(2, 2)) is None
    assert fold_vit(_module().backbone) is None


@pytest.mark.parametrize(("name", "value"), [("gate", nn.Linear(48, 48)), ("num_kv_heads", 1)])
def test_attention_of_other_kinds_is_left_alone(name: str, value: Any) -> None:
    module = _module("cls", "vit_small_patch16_rope_224")
    setattr(module.backbone.blocks[1].attn, name, value)
    assert (unfoldable_part(module) or "").startswith("blocks.1.attn has ")


def _output_shapes(folded: FoldedVit) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in folded.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape)))
    folded(TILES)
    return shapes


@pytest.mark.parametrize(
    "known", [known for known in known_encoders().values() if known.architecture], ids=lambda k: k.name
)
def test_every_known_encoder_takes_the_better_path(known: Known) -> None:
    import timm

    arguments = dict(known.arguments)
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = getattr(timm.layers, arguments["mlp_layer"])
    with torch.device("meta"):
        backbone = timm.create_model(known.architecture, **(arguments | {"depth": 2, "num_classes": 0}))
    half = (0.5, 0.5, 0.5)
    spec = EncoderSpec(
        name=known.name,
        architecture="known",
        embed_dim=8,
        tile_px=224,
        mean=half,
        std=half,
        pooling=known.pooling or "cls",
    )
    module = EncoderModule(backbone, spec)
    assert unfoldable_part(module) is unfittable_part(module) is None
