"""A student's first weights, fitted to a teacher in closed form, kept for any number of runs."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from atlas_edge.distill.reporting.card import fitted_card
from atlas_edge.distill.training.config import STUDENT_FILES, TrainConfig
from atlas_edge.manifest import ModelProvenance
from atlas_edge.system.atomic import atomic_folder, check_vacant
from atlas_edge.system.hardware import peak_memory_bytes

# What of a training configuration a fit reads.
OPTIONS = {
    "teachers", "tiles", "out", "student", "patch", "registers", "pooling", "init_from", "init_tiles", "whitening",
    "init_rounded", "views", "stored", "fresh", "fresh_share", "precision", "seed", "threads", "half", "keep_paths"
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What a fit did, as printed with `--json` and kept in the student's `report.json`.

    Attributes:
        student: Its folder.
        views: Views of the tiles that were used.
        cls_cosine: Mean cosine of the mapped CLS token with the teacher's, on those views.
        stream_kept: Share of the teacher's normalised stream energy inside the student's directions, 0-1.
        peak_memory_mb: Largest resident memory of this process, MB.
        teacher: Whom the student imitates.
        warnings: What was warned about.
    """

    student: str
    views: int
    cls_cosine: float
    stream_kept: float
    peak_memory_mb: float
    teacher: ModelProvenance
    warnings: tuple[str, ...]


def fit_student(
    config: TrainConfig, *, overwrite: bool = False, warn: Callable[[str], None] = lambda _: None
) -> FitReport:
    """Write the folder of a fitted student, to be used as it is or trained with `--student FOLDER`.

    Args:
        config: Whom to fit to is `teachers[0]`; the options on student, tiles, views and seed are as in training.
        overwrite: Replace an existing folder.
        warn: Called with each warning.

    Raises:
        UsageError: The teacher is no folder of a ViT, the two networks do not fit each other, or `half` cannot hold a
            weight.
        InputError: Tiles or teacher cannot be read.
        OSError: The folder cannot be written.
    """
    import torch

    from atlas_edge.distill.data.teachers import licence_warning
    from atlas_edge.distill.training.run import open_stream, student_licence, training_tiles
    from atlas_edge.distill.training.state import fit_to_teacher
    from atlas_edge.distill.training.student import save_student, student_of

    check_vacant(config.out, marks=STUDENT_FILES, overwrite=overwrite)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tiles = training_tiles(config)
    stream = open_stream(config, tiles)
    teacher = stream.targets[0].teacher
    warning = licence_warning(teacher)
    if warning is not None:
        warn(warning)
    backbone, architecture = student_of(config)
    architecture = architecture.of_tiles(tiles.mpp_range)
    # Opened first, so that a place that cannot be written is told before the minutes of the fit.
    with atomic_folder(config.out, marks=STUDENT_FILES, overwrite=overwrite) as folder:
        fitted = fit_to_teacher(config, stream, backbone, architecture)
        report = FitReport(
            student=str(config.out),
            views=min(config.init_tiles, stream.views),
            cls_cosine=fitted.cls_cosine,
            stream_kept=fitted.stream_kept,
            peak_memory_mb=peak_memory_bytes() / 1e6,
            teacher=teacher,
            warnings=() if warning is None else (warning,),
        )
        licence = student_licence(stream)
        save_student(folder, backbone.state_dict(), architecture, licence=licence, half=config.half)
        record = {"config": config.for_report(only=OPTIONS), **as_json(report), "student": config.out.name}
        shown = config.shown_tiles(tiles.provenance())
        record["tiles"] = [entry.model_dump() for entry in shown]
        (folder / "report.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        card = fitted_card(config, report, shown, licence=licence, architecture=architecture)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return report


def as_json(report: FitReport) -> dict[str, object]:
    """The report as plain data."""
    return {**asdict(report), "teacher": report.teacher.model_dump()}
