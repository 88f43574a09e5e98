"""What an encoder is, where each fact of it comes from, and which way it takes to each target and precision."""

from dataclasses import asdict, dataclass
from typing import Any

from atlas_edge.export.backends.base import Way, backend_of
from atlas_edge.models.load import LoadedModel
from atlas_edge.models.timm_config import CONFIG
from atlas_edge.spec import Precision, Target

_ASSUMED = "assumed: ImageNet's"
# A fact of the encoder, and the entry of the table of known encoders that has its source.
_SOURCES = {
    "pooling": "pooling",
    "mean": "statistics",
    "std": "statistics",
    "mpp": "mpp",
    "license": "licence",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The network.

    Attributes:
        parameters: Of the encoder, without its classifier.
        depth: Blocks; None for a network without.
        width: Of a token, or of the last feature map.
        heads: Of attention, in the first block.
        prefix_tokens: CLS and register tokens.
        patch_tokens: None for a network without.
    """

    parameters: int
    depth: int | None
    width: int | None
    heads: int | None
    prefix_tokens: int
    patch_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is to be said of an encoder.

    Attributes:
        model: The encoder.
        shape: Its network.
        origins: Where each fact comes from.
        ways: How each target's default recipe brings it to each precision.
    """

    model: LoadedModel
    shape: Shape
    origins: dict[str, str]
    ways: dict[Target, dict[Precision, Way]]

    @property
    def students(self) -> str:
        """Whether a student of it may be shipped, in words."""
        known = self.model.known
        return "not known: read its licence" if known is None else known.students_said

    @property
    def portable(self) -> tuple[str, ...]:
        """Targets whose INT8 `--portable` makes one that any runtime computes rightly on any processor."""
        return tuple(target.value for target in self.ways if backend_of(target).library is None)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        known = self.model.known
        return {
            "encoder": self.model.spec.model_dump(mode="json"),
            "model": self.model.provenance.model_dump(mode="json"),
            "shape": asdict(self.shape),
            "tokens": None if (grid := self.model.module.token_grid) is None else grid.model_dump(),
            "known_encoder": None if known is None else known.name,
            "gated": None if known is None else known.gated,
            "students": None if known is None else known.students,
            "origins": self.origins,
            "portable": self.portable,
            "ways": {
                target.value: {precision.value: asdict(way) for precision, way in ways.items()}
                for target, ways in self.ways.items()
            },
        }


def inspect_model(model: LoadedModel) -> Inspection:
    """Look at an encoder; nothing is calibrated, built or run."""
    return Inspection(
        model=model,
        shape=_shape(model),
        origins={fact: _origin(model, fact) for fact in _SOURCES},
        ways={
            target: {precision: backend_of(target).way(precision, model.module) for precision in Precision}
            for target in Target
        },
    )


def _shape(model: LoadedModel) -> Shape:
    backbone: Any = model.module.backbone
    blocks = getattr(backbone, "blocks", None)
    first = blocks[0] if blocks is not None and len(blocks) else None
    patch, px = model.spec.patch, model.spec.tile_px
    return Shape(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        depth=None if blocks is None else len(blocks),
        width=getattr(backbone, "num_features", None),
        heads=getattr(getattr(first, "attn", None), "num_heads", None),
        prefix_tokens=model.module.prefix_tokens,
        patch_tokens=(px // patch) ** 2 if patch is not None and blocks is not None else None,
    )


def _origin(model: LoadedModel, fact: str) -> str:
    if model.provenance.source == "registry" and not model.stated:
        return "our choice"
    if fact == "pooling" and model.spec.own_pooling is not None:
        return "asked for"
    if fact in model.stated or (fact == "mpp" and "mpp_range" in model.stated):
        return CONFIG
    source = None if model.known is None else model.known.sources.get(_SOURCES[fact])
    if source is not None:
        return f"published ({source})"
    if fact == "pooling":
        return "the network's own"
    return _ASSUMED if fact in ("mean", "std") else "not stated"
