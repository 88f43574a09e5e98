"""The bundle's `README.md`: what the model is, what it came from, what it measured, what it is not for."""

from typing import TYPE_CHECKING

from atlas_edge.export.report.summary import report_markdown
from atlas_edge.manifest import Manifest, ModelProvenance, TilesProvenance
from atlas_edge.runtimes.registry import runtime_of

if TYPE_CHECKING:
    from atlas_edge.export.pipeline import ExportResult

_TEMPLATE = """{front_matter}

# {title}

{what}

{warning}

## Use

```python
from atlas_edge import open_bundle

encoder = open_bundle("{folder}")
embeddings = encoder.encode(tiles)  # (B, {px}, {px}, 3) uint8 RGB -> (B, {dim}) float32{tokens}
```

Tiles are 8-bit RGB{mpp}. Normalisation is inside the model: do not normalise.{notice}

## Where it came from

| | |
|---|---|
| model | {model} |
| weights | {weights} |
| licence of the weights | {licence} |
| calibration | {calibration} |
| evaluation | {evaluation} |
| made with | {versions} |

## Measured

{figures}
"""

_TOKENS = """
embeddings, tokens = encoder.encode_tokens(tiles)  # tokens: (B, {}, {}) float32, rows of {grid.columns} patches"""


def model_card(result: "ExportResult") -> str:
    """Model card in the Hugging Face form: YAML front matter, then Markdown."""
    from huggingface_hub import ModelCardData

    manifest = result.manifest
    encoder, model = manifest.encoder, manifest.model
    data = ModelCardData(
        license=model.licence or "other",
        library_name="atlas-edge",
        pipeline_tag="image-feature-extraction",
        tags=["pathology", manifest.target.value, manifest.precision.value],
    )
    figures = report_markdown(result).partition("\n\n")[2].strip()
    return _TEMPLATE.format(
        front_matter=f"---\n{data.to_yaml()}\n---",
        title=f"{encoder.name} for {manifest.target.value}, {manifest.precision.value}",
        what=(
            f"A tile encoder for H&E histology ({encoder.architecture}, {encoder.pooling} pooling, "
            f"{encoder.embed_dim}-d embeddings), exported by atlas-edge for {manifest.target.value} "
            f"in {manifest.precision.value}."
        ),
        warning=f"**{not_for(manifest)}**",
        folder=result.folder.name,
        px=encoder.tile_px,
        dim=encoder.embed_dim,
        tokens=""
        if encoder.tokens is None
        else _TOKENS.format(*encoder.output_shapes(tokens=True)[1], grid=encoder.tokens),
        mpp=f" at {encoder.scales}" if encoder.scales else "; the model does not state its µm per pixel",
        model=f"{model.name} ({model.source}{f', commit {model.revision}' if model.revision else ''})",
        notice=without_atlas_edge(manifest),
        weights=about_weights(model, mark="`"),
        licence=model.licence or "not stated",
        calibration=tiles_sentence(manifest.calibration),
        evaluation=tiles_sentence(manifest.evaluation),
        versions=", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        figures=figures,
    )


def without_atlas_edge(manifest: Manifest) -> str:
    """What whoever opens the model file in its plain runtime must know, as a paragraph; "" where there is nothing."""
    if manifest.execution.portable:
        said = (
            f"the file is portable: any {runtime_of(manifest.target).title} computes the same of it on any processor, "
            "with VNNI or without."
        )
    elif manifest.notice:
        said = manifest.notice
    else:
        return ""
    return f"\n\n**Without atlas-edge:** {said}"


def not_for(manifest: Manifest) -> str:
    """What the bundle is not to be used for."""
    if manifest.encoder.random_weights:
        return "The weights are random: the embeddings mean nothing. Not for clinical use."
    if manifest.encoder.demonstration:
        return "A demonstration, not Atlas 2-S: it shows what the toolkit does. Not for clinical use."
    return "For research. Not a medical device; validate it on your own slides before any other use."


def about_weights(model: ModelProvenance, *, mark: str = "") -> str:
    """The hash of the weights, between marks, or that they are random."""
    return f"SHA-256 {mark}{model.sha256}{mark}" if model.sha256 else f"random, seed {model.seed}"


def tiles_sentence(tiles: TilesProvenance | None) -> str:
    """How many tiles of which set, and their licence."""
    if tiles is None:
        return "none"
    split = f", split {tiles.split}" if tiles.split else ""
    kind = "SYNTHETIC tiles" if tiles.synthetic else f"tiles of {tiles.name}"
    return f"{tiles.tiles} {kind}{split} (licence: {tiles.licence or 'not stated'})"
