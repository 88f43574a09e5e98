"""What an encoder is: the facts that travel with every model, bundle and report."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from atlas_edge.targets import Precision, Target

__all__ = ["EncoderSpec", "MppRange", "Pooling", "Precision", "Target", "TokenGrid"]

# What every model file calls its input and its outputs.
INPUT, OUTPUT, TOKENS = "tiles", "embedding", "tokens"
# How tokens or a feature map become one vector. `own`: by a head that has no other name here.
Pooling = Literal["cls", "cls+mean", "avg", "max", "avgmax", "catavgmax", "map", "own"]

_Mean = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]
_Mpp = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _from_fine_to_coarse(found: tuple[float, float]) -> tuple[float, float]:
    if not found[0] < found[1]:
        raise ValueError("expected the finest µm per pixel, then the coarsest")
    return found


MppRange = Annotated[tuple[_Mpp, _Mpp], AfterValidator(_from_fine_to_coarse)]
"""Finest and coarsest µm per pixel."""


class TokenGrid(BaseModel):
    """Patch tokens of a tile, after the last norm and without CLS and registers: row by row from the top left.

    Attributes:
        rows: Patches from top to bottom.
        columns: Patches from left to right.
        channels: Numbers a token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    channels: int = Field(gt=0)

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} patch tokens of {self.channels} channels"


class EncoderSpec(BaseModel):
    """Shape and preprocessing of an encoder: tiles `(B, tile_px, tile_px, 3)` uint8 -> `(B, embed_dim)` float32.

    Attributes:
        name: Model name, such as `atlas2-s` or `vit_small_patch14_dinov2`.
        architecture: timm architecture.
        embed_dim: Embedding size D, after pooling: `cls+mean` has twice the width of the network.
        tile_px: Side of the square input, pixels.
        mpp: µm per pixel that the encoder was trained at, or None where the model does not say.
        mpp_range: Finest and coarsest µm per pixel, where it was trained at all between them.
        mean: Per-channel mean on the 0-1 scale, subtracted inside the graph.
        std: Per-channel standard deviation on the 0-1 scale, divided by inside the graph.
        pooling: `cls` token, `cls+mean` (CLS beside the mean patch token), `avg` or another that the network has.
        own_pooling: The model's own pooling where another was asked for; None where `pooling` is its own.
        patch: Patch side in pixels; None for a CNN.
        registers: Number of register tokens.
        tokens: Patch tokens that `encode_tokens` gives beside the embedding; None for an encoder that gives none.
        random_weights: True when no trained weights were loaded.
        demonstration: True for the student that ships inside the package, and for what is made of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    embed_dim: int = Field(gt=0)
    tile_px: int = Field(gt=0)
    mpp: float | None = Field(default=None, gt=0)
    mpp_range: MppRange | None = Field(default=None, exclude_if=lambda found: found is None)
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]
    pooling: Pooling
    own_pooling: Pooling | None = None
    patch: int | None = None
    registers: int = 0
    tokens: TokenGrid | None = Field(default=None, exclude_if=lambda tokens: tokens is None)
    random_weights: bool = False
    demonstration: bool = False

    def output_shapes(self, *, tokens: bool) -> tuple[tuple[int, ...], ...]:
        """What is made of a tile: `(embed_dim,)`, and with `tokens`, where there are any, `(N, C)`."""
        grid = self.tokens if tokens else None
        embedding = (self.embed_dim,)
        return (embedding,) if grid is None else (embedding, (grid.rows * grid.columns, grid.channels))

    @property
    def scales(self) -> str | None:
        """At which µm per pixel it was trained, to be read; None where the model does not say."""
        if self.mpp_range is not None:
            return f"{self.mpp_range[0]:g} to {self.mpp_range[1]:g} µm per pixel"
        return None if self.mpp is None else f"{self.mpp:g} µm per pixel"

    @property
    def notice(self) -> str | None:
        """What must be said loudly wherever the encoder is used, or None."""
        if self.random_weights:
            return f"{self.name} has RANDOM weights: it shows that the tool works, its embeddings mean nothing"
        if self.demonstration:
            return f"{self.name} is a DEMONSTRATION, not Atlas 2-S: not for clinical use"
        return None
