"""The student's model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.distill.training.student import Architecture, student_folder
from atlas_edge.manifest import ModelProvenance, TilesProvenance

if TYPE_CHECKING:
    from atlas_edge.distill.closed_form.fit import FitReport
    from atlas_edge.distill.training.config import TrainConfig
    from atlas_edge.distill.training.run import Report

# ruff: noqa: E501 - a Markdown table cannot be wrapped
_TEMPLATE = """{front_matter}

# {name}

A {student} that imitates {teachers}. Not for clinical use: no figure here is a claim about diagnosis.

```python
import timm

encoder = timm.create_model("local-dir:{name}", pretrained=True)  # or atlas-export {name} …
```
{pooling}
## Where it came from

| | |
|---|---|
| teachers | {teacher_rows} |
| tiles | {tile_rows}{scales} |
| recipe | {recipe} |
| augmentation | stored {stored}; fresh {fresh} on {fresh_share:.0%} of views |
{warnings}
## Measured

{measured} Run `atlas-distill evaluate {teacher} {name} --fit … --tiles …` for what it keeps of its teacher.
"""

_BOTH = """
Its embedding is the CLS token beside the mean patch token, which timm does not put together:
`atlas_edge.load_encoder("{name}")` does, and so does what `atlas-export {name} …` makes.
"""


def student_card(
    config: "TrainConfig",
    report: "Report",
    tiles: Sequence[TilesProvenance],
    rows: Sequence[dict[str, Any]],
    *,
    licence: str,
    architecture: Architecture,
) -> str:
    """Model card of a trained student in the Hugging Face form: YAML front matter, then Markdown."""
    loss = rows[-1]["loss"] if rows else float("nan")
    cosine = "not measured" if report.held_out_cosine is None else f"{report.held_out_cosine:.4f}"
    return _card(
        config,
        report.teachers,
        tiles,
        report.warnings,
        licence=licence,
        architecture=architecture,
        recipe=f"{config.steps} steps of {config.batch} views, AdamW {config.lr:g}, {config.loss} loss, "
        f"PHI-S {'on' if config.phi_s else 'off'}, patch tokens × {config.patch_weight:g}, "
        f"first weights: {_first_weights(config)}",
        measured=f"Last training loss {loss:.4f}; held-out cosine to the teacher {cosine}. The whole curve is in "
        "`metrics.csv` and\n`loss.png`.",
    )


def fitted_card(
    config: "TrainConfig",
    report: "FitReport",
    tiles: Sequence[TilesProvenance],
    *,
    licence: str,
    architecture: Architecture,
) -> str:
    """Model card of a student that was fitted and not trained, in the same form."""
    return _card(
        config,
        (report.teacher,),
        tiles,
        report.warnings,
        licence=licence,
        architecture=architecture,
        recipe=f"fitted to the teacher in closed form on {report.views} views (atlas-distill fit), "
        f"output evened out (whitening {config.whitening:g}), not trained",
        measured=f"Mean cosine of its mapped CLS token to the teacher's {report.cls_cosine:.4f}, on the views of the fit;"
        f"\n{report.stream_kept:.1%} of the teacher's normalised stream lies in its directions.",
    )


def _card(
    config: "TrainConfig",
    teachers: Sequence[ModelProvenance],
    tiles: Sequence[TilesProvenance],
    warnings: Sequence[str],
    *,
    licence: str,
    architecture: Architecture,
    recipe: str,
    measured: str,
) -> str:
    from huggingface_hub import ModelCardData

    span = architecture.mpp_range
    data = ModelCardData(
        license=licence,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["pathology", "distillation"],
    )
    return _TEMPLATE.format(
        front_matter=f"---\n{data.to_yaml()}\n---",
        name=config.out.name,
        student=Path(config.student).name,
        teachers=" and ".join(teacher.name for teacher in teachers),
        teacher=teachers[0].name,
        teacher_rows="<br>".join(
            f"{teacher.name} (licence: {teacher.licence or 'not stated'}, SHA-256 {(teacher.sha256 or 'none')[:12]})"
            for teacher in teachers
        ),
        tile_rows="<br>".join(
            f"{entry.name}{'@' + entry.split if entry.split else ''}: {entry.tiles} tiles"
            f"{', procedural' if entry.synthetic else ''} (licence: {entry.licence or 'not stated'})"
            for entry in tiles
        ),
        pooling="" if architecture.pooling == "cls" else _BOTH.format(name=config.out.name),
        scales="" if span is None else f"<br>at all of {span[0]:g} to {span[1]:g} µm per pixel",
        recipe=recipe,
        stored=config.stored,
        fresh=config.fresh,
        fresh_share=config.fresh_share,
        warnings="".join(f"\n> {text}\n" for text in warnings),
        measured=measured,
    )


def _first_weights(config: "TrainConfig") -> str:
    if config.init == "teacher":
        return "fitted to the teacher"
    folder = student_folder(config.student)
    return "random" if folder is None else f"those of the folder {folder.name}"
