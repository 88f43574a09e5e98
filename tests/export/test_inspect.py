"""`atlas-export inspect`: the facts of an encoder with their origins, and its way to each target."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm")

from atlas_edge.cli import run_app
from atlas_edge.errors import InputError
from atlas_edge.export.cli import app
from atlas_edge.export.inspection import inspect_model
from atlas_edge.models.load import load_model
from atlas_edge.quantize.paths import FITTED, FLOAT, LAYER_WISE, NEAREST, NNCF
from atlas_edge.targets import Precision, Target
from support import write_timm_folder

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "plain"
    cfg = {"mean": None, "std": None}
    return write_timm_folder(folder, "vit_large_patch16_224", top={"mpp": 1.0}, cfg=cfg, init_values=0.1, **VIT)


def test_facts_have_an_origin(plain: Path) -> None:
    found = inspect_model(load_model(str(plain), known="uni"))
    assert found.origins["mpp"] == "config.json"
    assert found.origins["mean"].startswith("published (mahmoodlab/TRIDENT")
    assert found.origins["license"].startswith("published (rendeirolab/lazyslide-models")
    assert found.students.startswith("no student may be shipped")
    shape = found.shape
    assert (shape.depth, shape.width, shape.heads, shape.prefix_tokens, shape.patch_tokens) == (2, 48, 3, 1, 16)
    unknown = inspect_model(load_model(str(plain), pooling="avg"))
    assert (unknown.origins["mean"], unknown.origins["pooling"]) == ("assumed: ImageNet's", "asked for")
    assert unknown.students == "not known: read its licence"


def test_a_range_of_scales_is_the_folder_s_own(tmp_path: Path) -> None:
    folder = write_timm_folder(tmp_path / "ranged", "vit_large_patch16_224", top={"mpp_range": [0.25, 2]}, **VIT)
    assert inspect_model(load_model(str(folder))).origins["mpp"] == "config.json"
    folder = write_timm_folder(tmp_path / "turned", "vit_large_patch16_224", top={"mpp_range": [2, 0.25]}, **VIT)
    with pytest.raises(InputError, match=r"mpp_range is \[2, 0.25\]: .*the finest µm per pixel, then the coarsest"):
        load_model(str(folder))


def test_ways_of_a_plain_transformer(plain: Path) -> None:
    ways = inspect_model(load_model(str(plain))).ways
    assert {target: found[Precision.INT8].path for target, found in ways.items()} == {
        Target.OPENVINO: LAYER_WISE,
        Target.ONNX: FITTED,
        Target.TENSORRT: FITTED,
        Target.TENSORRT_RTX: FITTED,
    }
    assert {found[Precision.FP32].path for found in ways.values()} == {FLOAT}
    assert ways[Target.OPENVINO][Precision.FP8].path is None
    assert "no FP8" in str(ways[Target.OPENVINO][Precision.FP8].reason)
    assert ways[Target.TENSORRT_RTX][Precision.FP8].path == NEAREST


def test_ways_of_a_cnn_say_why(tmp_path: Path) -> None:
    folder = write_timm_folder(tmp_path / "model", "resnet18", cfg={"input_size": [3, 64, 64]})
    found = inspect_model(load_model(str(folder)))
    openvino, onnx = (found.ways[target][Precision.INT8] for target in (Target.OPENVINO, Target.ONNX))
    assert (openvino.path, onnx.path) == (NNCF, NEAREST)
    assert openvino.reason == onnx.reason == "ResNet is no plain vision transformer"
    assert found.shape.depth is None


def test_the_command(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["inspect", str(plain), "--as", "virchow2"]) == 0
    text = capsys.readouterr().out
    for part in ("Virchow2", "layer by layer", "block by block", "cls+mean", "96-d", "1 µm per pixel"):
        assert part in text, part
    assert run_app(app, ["inspect", str(plain), "--as", "uni", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["known_encoder"], found["students"], found["gated"]) == ("uni", "no", True)
    assert found["ways"]["openvino"]["int8"]["path"] == LAYER_WISE
    assert run_app(app, ["inspect", str(plain), "--as", "conch-v1.5"]) == 5
    assert run_app(app, ["inspect", str(plain), "--as", "nobody"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_export_takes_the_same_facts(plain: Path) -> None:
    from atlas_edge.cli import console
    from atlas_edge.export.config import resolve
    from atlas_edge.export.pipeline import _load
    from atlas_edge.export.steps import Steps

    config = resolve(model=str(plain), known="virchow2", target=Target.ONNX, precision=Precision.FP32)
    model = _load(config, Steps(console(quiet=True), 1))
    assert (model.spec.pooling, model.provenance.licence) == ("cls+mean", "cc-by-nc-nd-4.0")
