"""A student's first weights, fitted to a teacher in closed form, kept for any number of runs."""

from pathlib import Path

from atlas_edge.atomic import atomic_folder, check_vacant
from atlas_edge.distill.config import TrainConfig


def fit_student(config: TrainConfig, *, overwrite: bool = False) -> Path:
    """Write the folder of a fitted student, to be trained with `--student FOLDER`.

    Args:
        config: Whom to fit to is `teachers[0]`; the options on student, tiles, views and seed are as in training.
        overwrite: Replace an existing folder.

    Raises:
        UsageError: The teacher is no folder of a ViT, or the two networks do not fit each other.
    """
    import torch

    from atlas_edge.distill.run import open_stream, training_tiles
    from atlas_edge.distill.state import fit_to_teacher
    from atlas_edge.distill.student import build_student, save_head, save_student

    check_vacant(config.out, overwrite=overwrite)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    stream = open_stream(config, training_tiles(config))
    backbone, architecture = build_student(config.student, seed=config.seed)
    head = fit_to_teacher(config, stream, backbone, architecture)
    licence = next((target.teacher.licence for target in stream.targets if target.teacher.licence), "other")
    with atomic_folder(config.out, overwrite=overwrite) as folder:
        save_student(folder, backbone.state_dict(), architecture, licence=licence, half=False)
        save_head(folder, head)
    return config.out
