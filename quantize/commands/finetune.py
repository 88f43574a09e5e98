"""`atlas-quantize finetune`: a folder with the encoder that quantization-aware distillation made, and its graph."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_edge.errors import InputError, UsageError
from atlas_edge.quantize.finetune.qad import CHECKPOINT, QadOptions, QadResult, check_options, distill_quantized
from atlas_edge.quantize.finetune.trained_ranges import FILE, save_ranges
from atlas_edge.quantize.numerics.stages import unfittable_part
from atlas_edge.quantize.onnx.qdq import check_merging, merging, write_quantized
from atlas_edge.quantize.onnx.qkv_bias import separate_biases
from atlas_edge.quantize.recipe import Recipe, onnx_recipe
from atlas_edge.system.atomic import atomic_folder, check_vacant
from atlas_edge.tiles import TileFit, TileRecord, batches, open_tiles, provenance, select_records
from atlas_edge.unnamed import unnamed_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from atlas_edge.manifest import TilesProvenance
    from atlas_edge.models.load import LoadedModel

REPORT, GRAPH = "qad.json", "quantized.onnx"


def distill_model(
    name: str,
    tiles: str,
    out: Path,
    *,
    recipe: Recipe | None,
    options: QadOptions,
    weight_bits: int = 8,
    limit: int = 300,
    fit: TileFit = "exact",
    overwrite: bool = False,
    progress: "Callable[[int, float], None] | None" = None,
) -> dict[str, Any]:
    """Train, and write what every target is exported from.

    `OUT` is a model folder as `atlas-export OUT --target …` takes it, with weights on their grid and the ranges that
    were trained (`OUT/ranges.safetensors`), which the ONNX and TensorRT targets use; `OUT/quantized.onnx` holds both.
    The state of an unfinished run lies in `OUT.qad`.

    Args:
        name: Model folder (`config.json`, `model.safetensors`).
        tiles: Tiles without labels, as `open_tiles` takes them; their train split where there is one.
        out: Folder to write.
        recipe: How to quantize; `default_start` when None.
        options: How to train.
        weight_bits: Bits of a weight where no recipe is given.
        limit: Most tiles to train on.
        fit: What to do with tiles of another size.
        overwrite: Replace `out`.
        progress: Called with the step and its loss.

    Returns:
        The report, as in `OUT/qad.json`.

    Raises:
        UsageError: No model folder, a recipe that cannot be stored in one, or options that train nothing.
        InputError: A file cannot be read, or the network cannot be trained so.
    """
    from atlas_edge.models.timm_config import CONFIG

    model, recipe = check_distillation(name, out, recipe, options, weight_bits=weight_bits, overwrite=overwrite)
    source = Path(name.removeprefix("local-dir:"))
    opened = open_tiles(tiles, role="calibration")
    records = select_records(opened, limit, seed=options.seed)
    pixels = [piece.pixels for piece in batches(opened, records, size=8, tile_px=model.spec.tile_px, fit=fit)]
    state = out.with_name(f"{out.name}.qad")
    result = distill_quantized(
        model.module,
        np.concatenate(pixels),
        recipe=recipe,
        options=options,
        slides=_slides(records),
        folder=state,
        progress=progress,
    )
    report = _report(result, recipe, options, provenance(opened, records))
    with atomic_folder(out, marks=(REPORT,), overwrite=overwrite) as folder:
        report |= write_quantized(merging(model.module, result.module, recipe), model.spec, folder / GRAPH)
        save_ranges(result.module, folder / FILE, recipe)
        _write_weights(model, result, folder)
        shutil.copyfile(source / CONFIG, folder / CONFIG)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    with suppress(OSError):  # of the folder, only what training wrote
        (state / CHECKPOINT).unlink(missing_ok=True)
        state.rmdir()
    return report


def default_start(weight_bits: int, module: "nn.Module") -> Recipe:
    """The recipe that training begins with: weights of so many bits, the patch embedding left alone.

    Weights are fitted, and inputs smoothed, where the network has the blocks that this can be folded into; elsewhere
    weights are rounded to the nearest, and nothing is smoothed.

    Raises:
        UsageError: Fewer than 2 or more than 8 bits.
    """
    if not 2 <= weight_bits <= 8:
        raise UsageError(f"--weight-bits {weight_bits}: a weight has 2 to 8 bits", hint="leave it out")
    changes: dict[str, Any] = {"name": f"w{weight_bits}a8", "weight_bits": weight_bits}
    if unfittable_part(module) is not None:
        changes |= {"weights": "nearest", "smooth_alphas": (-1.0,)}
    return onnx_recipe().model_copy(update=changes)


def check_distillation(
    name: str, out: Path, recipe: Recipe | None, options: QadOptions, *, weight_bits: int = 8, overwrite: bool
) -> "tuple[LoadedModel, Recipe]":
    """Refuse what cannot be done, before any work.

    Returns:
        The model, and the recipe that training begins with.

    Raises:
        UsageError: `out` is taken, no model folder, options that train nothing, or a recipe that cannot be stored.
        InputError: The model cannot be read, or holds biases that a trained layer could not be stored with.
    """
    from atlas_edge.models.load import load_model
    from atlas_edge.models.timm_config import CONFIG

    check_options(options)
    check_vacant(out, marks=(REPORT,), overwrite=overwrite)
    if not (Path(name.removeprefix("local-dir:")) / CONFIG).is_file():
        raise UsageError(f"{name} is no model folder with {CONFIG}", hint="give a folder: atlas-distill writes one")
    model = load_model(name)
    recipe = recipe or default_start(weight_bits, model.module)
    check_merging(model.module, recipe)
    if max(recipe.smooth_alphas) >= 0 and (recipe.weights == "nearest" or unfittable_part(model.module) is not None):
        raise UsageError(
            "smoothing cannot be stored in a model folder but where weights are fitted, in a vision transformer",
            hint='put "weights": "nearest", "smooth_alphas": [-1] into the recipe, or leave --recipe out',
        )
    apart = separate_biases(model.module)
    if apart:
        raise InputError(
            f"{apart[0]} adds its bias outside the layer, where what training changes cannot be stored",
            hint="quantize it without training: atlas-export --precision int8",
        )
    return model, recipe


def _slides(records: "Sequence[TileRecord]") -> list[str] | None:
    """Slide of each tile; None where any has none, or all have the same."""
    slides = [record.group for record in records if record.group is not None]
    return slides if len(slides) == len(records) and len(set(slides)) > 1 else None


def _report(result: QadResult, recipe: Recipe, options: QadOptions, tiles: "TilesProvenance") -> dict[str, Any]:
    shown = unnamed_tiles(tiles)
    assert shown is not None
    return {
        "recipe": recipe.model_dump(mode="json"),
        "steps": options.steps,
        "tiles": shown.tiles,
        "tiles_trained": result.tiles_trained,
        "held_out_by": result.held_out_by,
        "tiles_of": shown.name,
        "error_before": result.error_before,
        "error_after": result.error_after,
        "kept": "after" if result.error_after < result.error_before else "before",
        "losses": result.losses,
        "resumed_at": result.resumed_at,
    }


def _write_weights(model: "LoadedModel", result: QadResult, folder: Path) -> None:
    """The backbone's own tensors, without what the quantizers added; `write_quantized` has put them on their grid."""
    from safetensors.torch import save

    from atlas_edge.models.timm_config import WEIGHTS

    names = model.module.backbone.state_dict().keys()
    found = result.module.get_submodule("backbone").state_dict()
    (folder / WEIGHTS).write_bytes(save({name: found[name].detach().clone().contiguous() for name in names}))
