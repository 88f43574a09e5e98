"""Which plans a search tries, and in which order."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_edge.errors import UsageError
from atlas_edge.quantize.backend import backend_of
from atlas_edge.quantize.plan import Plan
from atlas_edge.quantize.recipe import Recipe, for_merging
from atlas_edge.quantize.sensitivity.measure import Sensitivity
from atlas_edge.spec import Precision, Target

if TYPE_CHECKING:
    from torch import nn

# How many times less the blocks compute, step by step.
MERGED = (1.15, 1.3, 1.5, 1.75, 2.0)
# Shares of the encoder's work that are left in floating point, step by step.
LEFT_OUT = (0.02, 0.05, 0.10, 0.20, 0.40)


def first_plans(target: Target, floats: Sequence[Precision], recipe: Recipe | None = None) -> list[Plan]:
    """Everything in INT8 by the recipe (the target's default when None), and half precision."""
    recipe = recipe or backend_of(target).recipe
    plans = [Plan(name="int8", target=target, precision=Precision.INT8, recipe=recipe)]
    plans += [Plan(name=precision.value, target=target, precision=precision) for precision in floats[:1]]
    if recipe.attention:
        milder = recipe.model_copy(update={"name": f"{recipe.name}-float-attention", "attention": False})
        plans.append(Plan(name="int8, attention in float", target=target, precision=Precision.INT8, recipe=milder))
    return plans


def gentler_plans(target: Target, sensitivity: Sensitivity, recipe: Recipe | None = None) -> list[Plan]:
    """INT8 without the layers that cost most accuracy for their work, from few layers to many.

    Layers are ranked by the error that leaving them out takes away, for each multiply-add that it makes slower.
    """
    recipe = recipe or backend_of(target).recipe
    gains, work = sensitivity.gains(), {entry.layer: entry.work for entry in sensitivity.layers}
    modules = [layer for layer in gains if layer.rpartition(".")[2] not in ("scores", "values")]
    ranked = sorted(modules, key=lambda layer: gains[layer] / max(work[layer], 1e-9), reverse=True)
    plans: list[Plan] = []
    for share in LEFT_OUT:
        chosen: list[str] = []
        for layer in ranked:
            if sum(work[name] for name in [*chosen, layer]) <= share:
                chosen.append(layer)
        if not chosen or (plans and plans[-1].recipe is not None and len(chosen) <= len(plans[-1].recipe.exclude)):
            continue
        exclude = tuple(sorted({*recipe.exclude, *map(_pattern, chosen)}))
        gentler = recipe.model_copy(update={"name": f"{recipe.name}-without-{len(chosen)}", "exclude": exclude})
        name = f"int8 without {len(chosen)} layers"
        plans.append(Plan(name=name, target=target, precision=Precision.INT8, recipe=gentler))
    return plans


def merging_plans(target: Target, module: "nn.Module", recipe: Recipe | None = None) -> list[Plan]:
    """INT8 of networks that merge tokens, fewer to more; none where the network or the recipe cannot."""
    from atlas_edge.models.folding.merging import merge_schedule
    from atlas_edge.models.folding.vit import fold_vit

    recipe = recipe or backend_of(target).recipe
    folded = fold_vit(module)
    if folded is None or recipe.quantizer != "layers":
        return []
    plans: list[Plan] = []
    for factor in MERGED:
        try:
            merge_schedule(folded, factor)
        except UsageError:
            break
        if factor > recipe.merge_tokens:
            merging = for_merging(recipe, factor)
            name = f"int8, {factor:g} times less work"
            plans.append(Plan(name=name, target=target, precision=Precision.INT8, recipe=merging))
    return plans


def _pattern(layer: str) -> str:
    """The layer's name; a folded graph has three layers for one qkv, and the pattern matches both forms."""
    return layer.removesuffix("qkv") + "[qkv]*" if layer.endswith(".qkv") else layer
