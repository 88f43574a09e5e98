"""The folded network computes what the original computes."""

from typing import Any

import pytest
import torch
from torch import nn

from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.models.folded_vit import FoldedVit, fold_vit
from atlas_edge.spec import EncoderSpec, Pooling

TILES = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _module(pooling: Pooling = "cls", **options: Any) -> EncoderModule:
    import timm

    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
    backbone = timm.create_model("vit_tiny_patch16_224", pretrained=False, **(settings | options))
    torch.manual_seed(1)
    for parameter in backbone.parameters():
        # Far from the initial zeros and ones: a weight that is left out must show.
        parameter.data += 0.3 * torch.randn_like(parameter)
    spec = EncoderSpec(
        name="test",
        architecture="vit_tiny_patch16_224",
        embed_dim=96 if pooling == "cls+mean" else 48,
        tile_px=32,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        pooling=pooling,
        patch=8,
    )
    return EncoderModule(backbone, spec).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.1},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
        {"reg_tokens": 2, "no_embed_class": False},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"global_pool": "avg"},
        {"global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True},
        {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True},
        {"global_pool": "avg", "fc_norm": False, "reg_tokens": 2},
        {"fc_norm": True},
        {"global_pool": "map"},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
@pytest.mark.parametrize("pooling", ["cls", "avg", "cls+mean"])
def test_folding_keeps_the_embedding(options: dict[str, Any], pooling: Pooling) -> None:
    module = _module(pooling, **options)
    folded = fold_vit(module)
    assert folded is not None
    with torch.inference_mode():
        expected, found = module(TILES), folded(TILES)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("pool", ["map", "max", "avgmax"])
def test_a_pooling_of_the_network_s_own_is_left_alone(pool: Pooling) -> None:
    assert fold_vit(_module(pool, global_pool=pool)) is None


def test_the_last_block_computes_the_cls_token_alone() -> None:
    folded = fold_vit(_module("cls"))
    assert folded is not None
    shapes = _output_shapes(folded)
    assert shapes["blocks.2.mlp.fc1"][1] == 1
    assert shapes["blocks.2.attn.k"][1] == shapes["blocks.1.mlp.fc1"][1] == 17
    pooled = fold_vit(_module("avg"))
    assert pooled is not None
    assert _output_shapes(pooled)["blocks.2.mlp.fc1"][1] == 17


@pytest.mark.parametrize(
    "options", [{"norm_layer": nn.Identity}, {"act_layer": nn.SiLU}, {"pre_norm": True}, {"dynamic_img_size": True}]
)
def test_what_folding_does_not_know_is_left_alone(options: dict[str, Any]) -> None:
    import timm

    module = _module()
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    module.backbone = timm.create_model("vit_tiny_patch16_224", pretrained=False, **(settings | options))
    assert fold_vit(module) is None
    assert fold_vit(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("architecture", ["deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"])
def test_a_network_that_only_looks_like_it_is_left_alone(architecture: str) -> None:
    """Two heads that are averaged; a convolutional network before the patches."""
    import timm

    module = _module()
    module.backbone = timm.create_model(architecture, pretrained=False, num_classes=0, depth=1, img_size=32)
    assert fold_vit(module) is None


def _output_shapes(folded: FoldedVit) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in folded.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape)))
    folded(TILES)
    return shapes
