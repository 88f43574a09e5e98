import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from atlas_edge.bundle import read_manifest
from atlas_edge.errors import InputError, UsageError
from atlas_edge.export.engine.build import build_engine
from atlas_edge.models.graph import export_onnx
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.quantize.commands.finetune import distill_model
from atlas_edge.quantize.finetune.qad import QadOptions
from atlas_edge.quantize.finetune.trained_ranges import FILE, quantize_with_ranges, recipe_of_ranges
from atlas_edge.quantize.onnx.engine_graph import engine_graph
from atlas_edge.quantize.onnx.fakequant import cosine_error, embed
from atlas_edge.quantize.openvino.nncf import quantize_openvino
from atlas_edge.quantize.recipe import Recipe, save_recipe
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.runtimes.openvino import OpenVinoEncoder
from atlas_edge.runtimes.tensorrt_library import RTX
from atlas_edge.spec import Precision
from atlas_edge.tiles import open_tiles, provenance, select_records
from support import RunCommand

RECIPE = Recipe(name="w3", weight_bits=3, smooth_alphas=(-1.0,), patch_embed=False)
OPTIONS = QadOptions(steps=12, batch=8, held_out=16, warmup=2, weight_lr=1e-3, other_lr=1e-3)


@pytest.fixture(scope="module")
def distilled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qad")
    coarse = np.random.default_rng(3).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    (folder / "tiles").mkdir()
    (folder / "out.qad").mkdir()
    (folder / "out.qad" / "notes.txt").write_text("mine")
    for number, pixels in enumerate(coarse.repeat(4, axis=1).repeat(4, axis=2)):
        Image.fromarray(pixels).save(folder / "tiles" / f"{number}.png")
    distill_model(str(tiny_model), str(folder / "tiles"), folder / "out", recipe=RECIPE, options=OPTIONS)
    assert [path.name for path in (folder / "out.qad").iterdir()] == ["notes.txt"]
    return folder / "out"


def test_every_target_takes_the_distilled_model(
    distilled: Path,
    tiny: LoadedModel,
    calibration: list[NDArray[np.uint8]],
    held_out: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    report = json.loads((distilled / "qad.json").read_text())
    assert report["kept"] == "after"
    tiles = open_tiles(distilled.parent / "tiles")
    chosen = provenance(tiles, select_records(tiles, 300, seed=0))
    assert report["tiles_of"] == f"flat folder {chosen.fingerprint[:8]}"
    assert report["tiles"] == 64 and report["tiles_trained"] == 48 and report["held_out_by"] == "tile"
    reference = embed(tiny.module, [held_out])
    again = load_model(str(distilled))
    for name in ("attn.proj", "mlp.fc2"):
        weight = again.module.get_submodule(f"backbone.blocks.1.{name}").weight.detach().numpy()
        assert max(len(np.unique(row.round(6))) for row in weight) <= 8
    onnx_error = cosine_error(reference, OnnxEncoder(distilled / "quantized.onnx", tiny.spec).encode(held_out))
    assert onnx_error < 0.6 * report["error_before"]
    full = export_onnx(again.module, again.spec, tmp_path / "again.onnx")
    plain = Recipe(smooth_alphas=(-1.0,), patch_embed=False)
    model, _ = quantize_openvino(full, calibration, recipe=plain)
    assert cosine_error(reference, OpenVinoEncoder(model, tiny.spec).encode(held_out)) < 0.6 * report["error_before"]
    pytest.importorskip("tensorrt_rtx")
    engine_graph(distilled / "quantized.onnx", tmp_path / "engine.onnx", precision=Precision.INT8, tiles=held_out[:4])
    assert cosine_error(reference, OnnxEncoder(tmp_path / "engine.onnx", tiny.spec).encode(held_out)) < 0.6 * float(
        report["error_before"]
    )
    assert build_engine(tmp_path / "engine.onnx", tmp_path / "e", library=RTX, precision=Precision.INT8).layers > 10


@pytest.mark.parametrize("target", ["onnx", "tensorrt-rtx"])
def test_an_export_rounds_as_the_model_was_trained_to(
    run_command: RunCommand, distilled: Path, held_out: NDArray[np.uint8], tmp_path: Path, target: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    tiles = distilled.parent / "tiles"
    export = "atlas-export", distilled, "--target", target, "--precision", "int8", "--calib", tiles, "--no-speed"
    done = run_command(*export, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.quantization is not None
    digest = hashlib.sha256((distilled / FILE).read_bytes()).hexdigest()
    assert manifest.quantization["ranges_sha256"] == digest
    assert manifest.quantization["recipe"]["name"] == RECIPE.name
    file = manifest.execution.fallback_file or manifest.execution.model_file
    graph = distilled / "quantized.onnx"
    if target == "tensorrt-rtx":  # computes what is not quantized in FP16
        graph = tmp_path / "engine.onnx"
        engine_graph(distilled / "quantized.onnx", graph, precision=Precision.INT8, tiles=held_out[:4])
    found, wanted = (OnnxEncoder(path, manifest.encoder) for path in (tmp_path / "bundle" / file, graph))
    assert cosine_error(wanted.encode(held_out), found.encode(held_out)) < 1e-6


def test_a_recipe_on_the_command_line_is_used_in_place_of_trained_ranges(
    run_command: RunCommand, distilled: Path, tmp_path: Path
) -> None:
    tiles = distilled.parent / "tiles"
    save_recipe(Recipe(name="mine", smooth_alphas=(-1.0,)), tmp_path / "mine.json")
    export = "atlas-export", distilled, "--target", "onnx", "--precision", "int8", "--calib", tiles, "--no-speed"
    done = run_command(*export, "--recipe", tmp_path / "mine.json", "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    quantization = read_manifest(tmp_path / "bundle").quantization
    assert quantization is not None and quantization["recipe"]["name"] == "mine"
    assert "ranges_sha256" not in quantization


def test_ranges_that_are_broken_or_of_another_model_are_refused(
    distilled: Path, tiny: LoadedModel, tmp_path: Path
) -> None:
    tensors = load_file(distilled / FILE)
    name = next(name for name in tensors if name.endswith(".weight"))
    metadata = {"recipe": RECIPE.model_dump_json()}
    changes = {
        "does not fit the model": {name: tensors[name][:-1]},
        "holds no usable ranges": {name: tensors[name] * float("nan")},
    }
    for says, change in changes.items():
        save_file(tensors | change, tmp_path / FILE, metadata)
        with pytest.raises(InputError, match=says):
            quantize_with_ranges(tiny.module, tmp_path / FILE)
    (tmp_path / FILE).write_bytes((distilled / FILE).read_bytes()[:200])
    for read in (recipe_of_ranges, lambda path: quantize_with_ranges(tiny.module, path)):
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path / FILE)


def test_a_network_of_other_blocks_is_stored_as_it_was_trained(
    distilled: Path, network_folder: Callable[[str], Path], held_out: NDArray[np.uint8], tmp_path: Path
) -> None:
    source, out = network_folder("post-norm"), tmp_path / "out"
    report = distill_model(str(source), str(distilled.parent / "tiles"), out, recipe=None, options=OPTIONS)
    assert not out.with_name("out.qad").exists()
    assert report["held_out_by"] == "tile"
    before, after = load_model(str(source)), load_model(str(out))
    reference = embed(before.module, [held_out])
    # Weights on their grid, inputs in floating point: nearer than both rounded.
    rounded = cosine_error(reference, OnnxEncoder(out / "quantized.onnx", after.spec).encode(held_out))
    assert 0 < cosine_error(reference, embed(after.module, [held_out])) < 2 * rounded < 1e-3


def test_a_recipe_that_a_folder_cannot_hold_is_refused(
    tiny_model: Path, network_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    smoothed = RECIPE.model_copy(update={"smooth_alphas": (0.5,)})
    fitted = smoothed.model_copy(update={"weights": "fitted"})
    for folder, recipe in ((tiny_model, smoothed), (network_folder("post-norm"), fitted)):
        with pytest.raises(UsageError, match="cannot be stored in a model folder"):
            distill_model(str(folder), "none", tmp_path / "out", recipe=recipe, options=OPTIONS)
    with pytest.raises(InputError, match=r"backbone\.blocks\.0\.attn\.qkv adds its bias outside"):
        distill_model(str(network_folder("eva02")), "none", tmp_path / "out", recipe=None, options=OPTIONS)
    with pytest.raises(UsageError, match="no model folder"):
        distill_model("atlas2-s", "none", tmp_path / "out", recipe=RECIPE, options=OPTIONS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("MODEL", "--weight-bits", "9"), "a weight has 2 to 8 bits"),
        (("MODEL", "--steps", "0"), "--steps 0 trains nothing"),
        (("nowhere",), "no model folder"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    run_command: RunCommand, tiny_model: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    model, *rest = (str(tiny_model) if option == "MODEL" else option for option in options)
    done = run_command("atlas-quantize", "finetune", model, tmp_path, tmp_path / "out", *rest)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()
