"""The embedding is timm's own, over timm's families; what cannot be loaded ends in an InputError."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm")

from atlas_edge.errors import InputError
from atlas_edge.models.load import load_model
from support import timm_embedding, write_timm_folder

_VIT: dict[str, Any] = {"img_size": 64, "embed_dim": 48, "depth": 1, "num_heads": 3}
_SMALL = {"tile_px": 64}
_AVG = {"global_pool": "avg"}
_Family = tuple[str, dict[str, Any]]
_FAMILIES: list[_Family] = [
    ("vit_tiny_patch16_224", _VIT),
    ("vit_tiny_patch16_224", _VIT | _AVG),
    ("vit_tiny_patch16_224", _VIT | _AVG | {"pool_include_prefix": True}),
    ("vit_tiny_patch16_224", _VIT | _AVG | {"class_token": False}),
    ("vit_tiny_patch16_224", _VIT | {"fc_norm": True}),
    ("vit_tiny_patch16_224", _VIT | {"dynamic_img_size": True}),
    ("vit_tiny_patch16_224", _VIT | {"global_pool": "max", "qk_norm": True}),
    ("vit_base_patch16_siglip_224", _VIT),
    ("vit_base_patch16_clip_224", _VIT),
    ("vit_medium_patch16_reg4_gap_256", _VIT),
    ("vit_giant_patch14_reg4_dinov2", _VIT | {"img_size": 56}),
    ("vit_small_patch16_dinov3", _VIT),
    ("vit_tiny_r_s16_p8_224", _VIT),
    ("eva02_tiny_patch14_224", _VIT | {"img_size": 56}),
    ("beit_base_patch16_224", _VIT),
    ("deit_tiny_distilled_patch16_224", _VIT),
    ("naflexvit_base_patch16_gap", {"embed_dim": 48, "depth": 1, "num_heads": 3}),
    ("samvit_base_patch16_224", _VIT),
    ("cait_xxs24_224", _VIT),
    ("convit_tiny", _VIT),
    ("xcit_nano_12_p16_224", _VIT),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": [1, 1, 1, 1]}),
    ("pvt_v2_b0", _SMALL | {"depths": [1, 1, 1, 1]}),
    ("levit_128s", {}),
    ("pit_ti_224", {}),
    ("convnext_atto", _SMALL),
    ("resnet18", _SMALL | {"global_pool": "catavgmax"}),
    ("resnet18", _SMALL | {"global_pool": "max"}),
    ("mobilenetv3_small_100", _SMALL),
    ("efficientvit_b0", _SMALL),
    ("mambaout_femto", _SMALL),
    ("regnetx_002", _SMALL),
    ("edgenext_xx_small", _SMALL),
    ("starnet_s1", _SMALL),
]
# The same of networks that take a second or more each.
_LARGER: list[_Family] = [
    ("swinv2_tiny_window8_256", {"embed_dim": 24, "depths": [1, 1, 1, 1]}),
    ("hiera_tiny_224", {}),
    ("twins_svt_small", {}),
    ("volo_d1_224", {}),
    ("coat_tiny", {}),
    ("tnt_s_legacy_patch16_224", {}),
    ("mvitv2_tiny", {}),
    ("davit_tiny", {}),
    ("maxvit_tiny_tf_224", {}),
    ("coatnet_nano_cc_224", {}),
    ("vitamin_small_224", {}),
    ("mixer_s32_224", {}),
    ("poolformer_s12", _SMALL),
    ("caformer_s18", _SMALL),
    ("convnextv2_atto", _SMALL),
    ("resnetv2_50", _SMALL),
    ("efficientnet_b0", _SMALL),
    ("mobilevit_xxs", {}),
    ("fastvit_t8", _SMALL),
    ("efficientvit_m0", {}),
    ("densenet121", _SMALL),
    ("vgg11", {}),
    ("xception41", _SMALL),
    ("inception_v3", {}),
    ("repvgg_a0", {}),
    ("tiny_vit_5m_224", {}),
    ("visformer_tiny", {}),
    ("ghostnet_100", _SMALL),
    ("hrnet_w18_small", _SMALL),
    ("dla34", _SMALL),
    ("focalnet_tiny_srf", _SMALL),
    ("sequencer2d_s", {}),
    ("shvit_s1", _SMALL),
    ("nfnet_l0", _SMALL),
    ("dpn68", _SMALL),
    ("res2net50_26w_4s", _SMALL),
]
_ALL = pytest.mark.skipif("ATLAS_ALL_FAMILIES" not in os.environ, reason="slow: set ATLAS_ALL_FAMILIES=1")


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [*_FAMILIES, *(pytest.param(*family, marks=_ALL) for family in _LARGER)],
    ids=lambda part: part if isinstance(part, str) else ",".join(sorted(part.keys() - _VIT.keys())),
)
def test_the_embedding_is_timm_s_own(architecture: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """With the classifier in the file, which has to go."""
    import torch

    arguments = dict(arguments)
    tile_px = arguments.pop("tile_px", None)
    folder = write_timm_folder(tmp_path / "model", architecture, num_classes=3, **arguments)
    model = load_model(str(folder), tile_px=tile_px)
    px = model.spec.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (2, px, px, 3), dtype=np.uint8)
    with torch.inference_mode():
        found = model.module(torch.from_numpy(tiles)).numpy()
    # Of the same normalised images: some networks of random weights make much of the last bit.
    expected = timm_embedding(folder, tiles, normalise=model.module.normalise)
    assert found.shape == expected.shape == (2, model.spec.embed_dim)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert (1 - (found * expected).sum(1) / lengths < 1e-6).all()


def test_a_folder_that_timm_cannot_load_is_refused(tmp_path: Path) -> None:
    """CrossViT, stored at its own 240 px, without a word on its size."""
    with pytest.raises(InputError, match="does not fit the architecture: size mismatch for pos_embed"):
        load_model(str(write_timm_folder(tmp_path / "model", "crossvit_tiny_240", config_args={})))
