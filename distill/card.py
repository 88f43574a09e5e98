"""The student's model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.manifest import TilesProvenance

if TYPE_CHECKING:
    from atlas_edge.distill.config import TrainConfig
    from atlas_edge.distill.run import Report

# ruff: noqa: E501 - a Markdown table cannot be wrapped
_TEMPLATE = """---
license: {licence}
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- pathology
- distillation
---

# {name}

A {student} that imitates {teachers}. Not for clinical use: no figure here is a claim about diagnosis.

```python
import timm

encoder = timm.create_model("local-dir:{name}", pretrained=True)  # or atlas-export {name} …
```

## Where it came from

| | |
|---|---|
| teachers | {teacher_rows} |
| tiles | {tile_rows} |
| recipe | {steps} steps of {batch} views, AdamW {lr:g}, {loss} loss, PHI-S {phi_s}, patch tokens × {patch_weight:g}, first weights: {init} |
| augmentation | stored {stored}; fresh {fresh} on {fresh_share:.0%} of views |
{warnings}
## Measured

Last training loss {loss_value:.4f}; held-out cosine to the teacher {cosine}. The whole curve is in `metrics.csv` and
`loss.png`. Run `atlas-distill evaluate {teacher} {name} --fit … --tiles …` for what it keeps of its teacher.
"""


def student_card(
    config: "TrainConfig", report: "Report", tiles: Sequence[TilesProvenance], rows: Sequence[dict[str, Any]]
) -> str:
    """Model card in the Hugging Face form: YAML front matter, then Markdown."""
    return _TEMPLATE.format(
        licence=next((teacher.licence for teacher in report.teachers if teacher.licence), "other"),
        name=config.out.name,
        student=config.student,
        teachers=" and ".join(teacher.name for teacher in report.teachers),
        teacher=report.teachers[0].name,
        teacher_rows="<br>".join(
            f"{teacher.name} (licence: {teacher.licence or 'not stated'}, SHA-256 {(teacher.sha256 or 'none')[:12]})"
            for teacher in report.teachers
        ),
        tile_rows="<br>".join(
            f"{entry.name}{'@' + entry.split if entry.split else ''}: {entry.tiles} tiles"
            f"{', procedural' if entry.synthetic else ''} (licence: {entry.licence or 'not stated'})"
            for entry in tiles
        ),
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        loss=config.loss,
        phi_s="on" if config.phi_s else "off",
        patch_weight=config.patch_weight,
        init=_first_weights(config),
        stored=config.stored,
        fresh=config.fresh,
        fresh_share=config.fresh_share,
        warnings="".join(f"\n> {text}\n" for text in report.warnings),
        loss_value=rows[-1]["loss"] if rows else float("nan"),
        cosine="not measured" if report.held_out_cosine is None else f"{report.held_out_cosine:.4f}",
    )


def _first_weights(config: "TrainConfig") -> str:
    if config.init == "teacher":
        return "fitted to the teacher"
    folder = Path(config.student)
    return f"those of the folder {folder.name}" if folder.is_dir() else "random"
