"""What a start in closed form is worth: students of several teachers and depths, each beside random weights.

    python tools/first_weights.py MODEL SWIGLU ROTARY --depths 12 8 6 --tiles TILES --held-out TILES@test

A row is a student before its first step, with heads fitted to the same views: the mean cosine of its mapped CLS tokens
with its teacher's normalised ones, on tiles that nothing was fitted to. A teacher is a folder of a ViT, whose own depth
is the equal-depth start; of the smaller depths the fit chooses the blocks that matter most.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen
from cyclopts import Parameter

from atlas_edge.cli import make_app, run_app
from atlas_edge.options import Many

app = make_app("first_weights", __doc__ or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One row.

    Attributes:
        teacher: Name of its folder.
        kind: What sets the teacher apart: `plain`, `gated`, `rotary`.
        teacher_blocks: Its blocks.
        student_blocks: The student's.
        random: Held-out cosine of a student with random weights.
        fitted: Of the same student with weights fitted in closed form.
    """

    teacher: str
    kind: str
    teacher_blocks: int
    student_blocks: int
    random: float
    fitted: float


@app.default
def first_weights(
    *teachers: str,
    tiles: Annotated[Many, MinLen(1)],
    held_out: str,
    depths: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1), Parameter(negative="", consume_multiple=True)] = (
        12,
    ),
    width: Annotated[int, Ge(1)] = 192,
    views: Annotated[int, Ge(8)] = 384,
    precision: Literal["bf16", "fp32"] = "bf16",
    seed: Annotated[int, Ge(0)] = 0,
    as_json: bool = False,
) -> None:
    """Fit students, and say what each start is worth on tiles that it has not seen.

    Args:
        teachers: Folders of ViTs.
        tiles: Tiles to fit to.
        held_out: Others to compare on; of sets with splits name them: TILES@test.
        depths: Blocks of the students, of those that a teacher has enough for.
        width: Channels of the students, a multiple of the teachers' head size.
        views: Views of the tiles that weights and heads are fitted to.
        precision: In which the fit computes activations.
        seed: Of random weights and views.
        as_json: Print JSON instead of a table.
    """
    found = measure(
        teachers, tiles=tiles, held_out=held_out, depths=depths, width=width, views=views, precision=precision,
        seed=seed,
    )  # fmt: skip
    print(json.dumps([asdict(row) for row in found], indent=2) if as_json else table(found))


def measure(teachers: Sequence[str], *, depths: Sequence[int], width: int, **options: Any) -> list[Start]:
    """The rows; see `first_weights`."""
    from atlas_edge.models.load import load_model

    rows = []
    for name in teachers:
        backbone: Any = load_model(name).module.backbone
        rotary = getattr(backbone, "rope", None) is not None
        gated = type(backbone.blocks[0].mlp).__name__ in ("GluMlp", "SwiGLU")
        kind = ", ".join([*(["gated"] if gated else []), *(["rotary"] if rotary else [])]) or "plain"
        for depth in sorted({depth for depth in depths if depth <= len(backbone.blocks)}, reverse=True):
            with TemporaryDirectory() as scratch:
                student = _random_student(Path(scratch) / "student", backbone, depth=depth, width=width, **options)
                random, fitted = (
                    _cosine(name, student, Path(scratch) / init, init, **options) for init in ("random", "teacher")
                )
            row = Start(
                teacher=Path(name).name,
                kind=kind,
                teacher_blocks=len(backbone.blocks),
                student_blocks=depth,
                random=random,
                fitted=fitted,
            )
            rows.append(row)
    return rows


def table(rows: Sequence[Start]) -> str:
    """As Markdown."""
    lines = ["| teacher | its blocks | student's blocks | random weights | closed form |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        numbers = f"{row.teacher_blocks} | {row.student_blocks} | {row.random:.3f} | {row.fitted:.3f}"
        lines.append(f"| {row.teacher} ({row.kind}) | {numbers} |")
    return "\n".join(lines)


def _random_student(folder: Path, teacher: Any, *, depth: int, width: int, seed: int, **_: Any) -> str:
    """A student with its teacher's kind of positions, head size, grid of patches and prefix tokens."""
    from atlas_edge.distill.training.student import build_student, save_student

    grid, head_size = int(teacher.patch_embed.grid_size[0]), int(teacher.blocks[0].attn.head_dim)
    shape = {
        "img_size": 14 * grid,
        "patch_size": 14,
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // head_size,
        "global_pool": "token",
    }
    registers = teacher.num_prefix_tokens - 1
    if getattr(teacher, "rope", None) is None:
        architecture, shape["reg_tokens"] = "vit_tiny_patch16_224", registers
        shape["no_embed_class"] = bool(teacher.no_embed_class)
    else:
        architecture, shape["num_reg_tokens"] = "vit_small_patch16_dinov3", registers
    backbone, built = build_student(architecture, arguments=shape, seed=seed)
    folder.mkdir(parents=True)
    save_student(folder, backbone.state_dict(), built, licence="unknown", half=False)
    return str(folder)


def _cosine(
    teacher: str,
    student: str,
    run: Path,
    init: Literal["random", "teacher"],
    *,
    tiles: tuple[str, ...],
    held_out: str,
    views: int,
    precision: Literal["bf16", "fp32"],
    seed: int,
) -> float:
    from atlas_edge.distill.training.config import TrainConfig
    from atlas_edge.distill.training.held_out import held_out_figures
    from atlas_edge.distill.training.run import held_out_tiles, open_stream, training_tiles
    from atlas_edge.distill.training.state import start

    config = TrainConfig(
        teachers=(teacher,), tiles=tiles, out=run, student=student, init=init, init_tiles=views, held_out=held_out,
        batch=1, precision=precision, patch_weight=0.0, seed=seed,
    )  # fmt: skip
    run.mkdir(parents=True)
    stream = open_stream(config, training_tiles(config))
    # The student is a folder either way, so that heads are fitted to random weights, too.
    state = start(config, stream, run, statistics_views=max(views, 2))
    found = held_out_figures(state.model, held_out_tiles(config, stream), state.architecture)["held_out_cosine"]
    assert found is not None
    return float(found)


if __name__ == "__main__":
    raise SystemExit(run_app(app))
