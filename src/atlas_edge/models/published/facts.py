"""What a model folder leaves unsaid, from the table of known encoders; what the folder says holds."""

from dataclasses import replace
from typing import Any

from atlas_edge.models.published.known import Known
from atlas_edge.models.timm_config import CONFIG, TimmConfig
from atlas_edge.spec import Pooling

_POOLINGS: dict[str, Pooling] = {"token": "cls", "avg": "avg"}
# They are the same to three digits, in whatever way they were rounded.
_ROUNDED = 1e-3
# Told, or compared, elsewhere; the first value of a trained scale changes nothing.
_NOT_TOLD = frozenset({"global_pool", "num_classes", "img_size", "dynamic_img_size", "dynamic_img_pad"})
_NOT_COMPARED = _NOT_TOLD | {"init_values"}


def with_known(config: TimmConfig, known: Known, *, has_architecture: bool) -> TimmConfig:
    """Fill in what a folder of a known encoder does not say.

    Args:
        config: Of the folder.
        known: Its entry.
        has_architecture: Whether timm has the architecture that the folder names; the entry's is taken where not.

    Returns:
        The same with more facts; `assumptions` says which were taken, and where the two contradict each other.
    """
    filled: list[str] = []
    at_odds: list[str] = []
    architecture = config.architecture
    if known.architecture is not None and not has_architecture:
        filled.append(f"architecture {known.architecture}")
        architecture = known.architecture
    arguments = _arguments(config, known, architecture, filled, at_odds)
    stated = {**_statistics(config, known, filled, at_odds), **_rest(config, known, filled, at_odds)}
    pooling = _pooling(config, known, at_odds)
    assumptions = tuple(text for text in config.assumptions if not ({"mean", "std"} & stated.keys()))
    if filled:
        said = f"{CONFIG} leaves out what {known.title} is published with, which was taken: {', '.join(filled)}"
        assumptions += (said,)
    return replace(
        config,
        architecture=architecture,
        arguments=arguments,
        stated=config.stated.model_copy(update=stated),
        given=config.given | stated.keys(),
        pooling=pooling,
        assumptions=(*assumptions, *at_odds),
    )


def _arguments(
    config: TimmConfig, known: Known, architecture: str, filled: list[str], at_odds: list[str]
) -> dict[str, Any]:
    if architecture != known.architecture:
        if known.architecture is not None:
            at_odds.append(_odds("architecture", config.architecture, known, known.architecture))
        return config.arguments
    missing = {name: value for name, value in known.arguments.items() if name not in config.arguments}
    if "input_size" in config.given:
        missing.pop("img_size", None)
    told = sorted(missing.keys() - _NOT_TOLD)
    if told:
        filled.append(f"model_args {', '.join(told)}")
    for name in sorted((known.arguments.keys() & config.arguments.keys()) - _NOT_COMPARED):
        if not _same(config.arguments[name], known.arguments[name]):
            at_odds.append(_odds(name, config.arguments[name], known, known.arguments[name]))
    return config.arguments | missing


def _statistics(config: TimmConfig, known: Known, filled: list[str], at_odds: list[str]) -> dict[str, Any]:
    """Mean and deviation, both or neither: one of each would be of two encoders."""
    if known.mean is None or known.std is None:
        return {}
    if not config.given & {"mean", "std"}:
        filled.append("mean and deviation")
        return {"mean": known.mean, "std": known.std}
    for name, published in (("mean", known.mean), ("std", known.std)):
        found = getattr(config.stated, name)
        if any(abs(one - other) > _ROUNDED for one, other in zip(found, published, strict=True)):
            at_odds.append(_odds(name, list(found), known, list(published)))
    return {}


def _rest(config: TimmConfig, known: Known, filled: list[str], at_odds: list[str]) -> dict[str, Any]:
    taken: dict[str, Any] = {}
    stated = config.stated
    if known.tile_px is not None and "input_size" not in config.given and "img_size" not in config.arguments:
        # Without the second, timm builds some networks for another size than they are stated for.
        taken |= {"input_size": (3, known.tile_px, known.tile_px), "fixed_input_size": True}
        filled.append(f"{known.tile_px} px")
    if known.mpp and stated.mpp is None:
        taken["mpp"] = known.mpp[0]
        filled.append(f"{known.mpp[0]:g} µm per pixel")
    elif known.mpp and stated.mpp not in known.mpp:
        at_odds.append(_odds("mpp", stated.mpp, known, list(known.mpp)))
    if known.licence is not None and stated.license is None:
        taken["license"] = known.licence
        filled.append(f"licence {known.licence}")
    elif known.licence is not None and stated.license is not None and stated.license.lower() != known.licence:
        at_odds.append(_odds("license", stated.license, known, known.licence))
    return taken


def _pooling(config: TimmConfig, known: Known, at_odds: list[str]) -> Pooling | None:
    """As the file states it, or else as it is published; whether the network's own differs is not known yet."""
    named = config.arguments.get("global_pool")
    stated = config.pooling or _POOLINGS.get(named or "")
    if known.pooling is None or stated == known.pooling:
        return config.pooling
    if stated is None and not named:
        return known.pooling
    at_odds.append(_odds("the pooling", stated or named, known, known.pooling))
    return config.pooling


def _odds(fact: str, found: Any, known: Known, published: Any) -> str:
    return f"{CONFIG} says {fact} {found}, {known.title} is published with {published}: what the file says was taken"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.rpartition(".")[2].lower() == other.rpartition(".")[2].lower()
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= _ROUNDED * max(abs(one), 1.0)
    return bool(one == other)
