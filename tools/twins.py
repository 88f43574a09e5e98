"""Twins of a ViT teacher in architectures whose published weights are not at hand.

Networks of every kind can so be measured on activations and outliers that are real:

    python tools/twins.py swiglu --teacher MODEL --tiles TILES --out FOLDER

A twin begins from its teacher's own weights wherever the shape allows. What is new is fitted in closed form, then block
by block to the teacher's tokens, then end to end to its tokens and embedding (`parts/twin_fit.py`). It is for measuring
only: `twin.json` in its folder says what it keeps of its teacher, and `twin_table.py` measures its INT8.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import UsageError
from atlas_edge.models.timm_config import CONFIG

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_edge.models.encoder_module import EncoderModule
    from atlas_edge.models.load import LoadedModel
    from parts.twin_fit import Kind

REPORT = "twin.json"
_MEASURED_TILES = 16

app = make_app("twins", __doc__ or "")


@app.default
def make_twin(
    kind: Literal["swiglu", "rotary", "qknorm", "patch8"],
    /,
    *,
    teacher: str,
    tiles: str,
    out: Path,
    probe: str | None = None,
    steps: Annotated[int, Ge(0)] = 150,
    train_tiles: Annotated[int, Ge(2)] = 128,
    judged: Annotated[int, Ge(2)] = 200,
    seed: int = 0,
) -> None:
    """Make a twin, and say what it keeps of its teacher.

    Args:
        kind: Its architecture.
        teacher: Folder of a plain ViT.
        tiles: Tiles to fit to (their train split), and others to compare on (their test split).
        out: Folder to write.
        probe: Labelled tiles for kNN and linear probes; those of `tiles` when left out.
        steps: Steps of two tiles end to end; each block takes a third as many. 0: closed forms alone.
        train_tiles: Tiles to fit to.
        judged: Tiles to compare on, to fit the probes on, and to test these on.
        seed: Of the tiles and their order.
    """
    import torch

    from atlas_edge.bench.accuracy.tileset import TileSet
    from atlas_edge.distill.training.student import save_student
    from atlas_edge.models.encoder_module import EncoderModule
    from atlas_edge.system.atomic import atomic_folder, check_vacant
    from atlas_edge.tiles import open_tiles, select_records
    from parts.twin_fit import KINDS, build_twin, fit_twin

    check_vacant(out, marks=(CONFIG,), overwrite=False)
    begun, shape = time.monotonic(), KINDS[kind]
    torch.manual_seed(seed)
    master = open_teacher(teacher, shape)
    source = open_tiles(tiles, role="calibration")
    chosen = TileSet(source=source, records=tuple(select_records(source, train_tiles, seed=seed)), fit="resize")
    network, architecture = build_twin(shape, master)
    twin = EncoderModule(network, master.spec).eval()
    own, theirs = (torch.from_numpy(chosen.pixels(side)) for side in (architecture.tile_px, master.spec.tile_px))
    fit_twin(twin, master.module, own, theirs, steps=steps)
    report: dict[str, Any] = {"kind": kind, "title": shape.title, "teacher": master.spec.name, "seed": seed}
    report |= {"steps": steps, "train_tiles": len(own), "fit_seconds": round(time.monotonic() - begun)}
    with atomic_folder(out, marks=(CONFIG,)) as folder:
        save_student(
            folder, network.state_dict(), architecture, licence=master.provenance.licence or "unknown", half=False
        )
        if shape.pooling != "cls":
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | {"pooling": shape.pooling}
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        report |= compare(str(folder), master, tiles=tiles, probe=probe or tiles, limit=judged)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


def open_teacher(name: str, kind: "Kind") -> "LoadedModel":
    """The teacher on the twin's grid of patches, pooled as the twin is.

    Raises:
        UsageError: It is no plain ViT.
    """
    from atlas_edge.distill.closed_form.blocks import angles
    from atlas_edge.distill.closed_form.inheritable import check_parts
    from atlas_edge.models.load import load_model

    found = load_model(name, pooling=kind.pooling)
    try:
        check_parts(found.module.backbone, found.module.backbone)
        if angles(found.module.backbone) is not None:
            raise ValueError("it has rotary positions")
    except ValueError as error:
        raise UsageError(f"no twin can be made of {name}: {error}", hint="give a plain ViT, such as DINOv2") from error
    if kind.patch is None:
        return found
    assert found.spec.patch is not None
    return load_model(name, pooling=kind.pooling, tile_px=found.spec.tile_px // kind.patch * found.spec.patch)


def compare(folder: str, teacher: "LoadedModel", *, tiles: str, probe: str, limit: int) -> dict[str, Any]:
    """What a twin keeps of its teacher: embeddings, probes, outliers.

    Args:
        folder: The twin's.
        teacher: From `open_teacher`.
        tiles: Their test split is compared on.
        probe: Labelled tiles.
        limit: Most tiles of each.
    """
    import torch

    from atlas_edge.bench.accuracy.agreement import tile_cosines
    from atlas_edge.bench.accuracy.tileset import TileSet, embed_tiles
    from atlas_edge.distill.judging.evaluate import evaluate
    from atlas_edge.models.load import load_model
    from atlas_edge.runtimes.torch import TorchEncoder
    from atlas_edge.tiles import open_tiles, select_records

    models = {"teacher": teacher, "twin": load_model(folder)}
    encoders = {name: TorchEncoder(model.module, model.spec) for name, model in models.items()}
    source = open_tiles(tiles, role="evaluation")
    held_out = TileSet(source=source, records=tuple(select_records(source, limit)), fit="resize")
    found = embed_tiles(encoders, held_out)
    cosines = tile_cosines(found["teacher"], found["twin"])
    judged = evaluate(*encoders.values(), fit=probe, tiles=None, fit_limit=limit, limit=limit, stress_limit=0)
    few = replace(held_out, records=held_out.records[:: -(-len(held_out.records) // _MEASURED_TILES)])
    return {
        "tiles": source.name,
        "held_out_tiles": len(cosines),
        "cosine_median": float(np.median(cosines)),
        "cosine_p1": float(np.quantile(cosines, 0.01)),
        **_spread(found["teacher"], found["twin"]),
        "probe_tiles": judged.tiles,
        "probe": {
            part.method: {"teacher": part.teacher_score, "twin": part.student_score} for part in judged.retention
        },
        "outliers": {
            name: outliers(model.module, torch.from_numpy(few.pixels(model.spec.tile_px)))
            for name, model in models.items()
        },
    }


def _spread(teacher: NDArray[np.float32], twin: NDArray[np.float32]) -> dict[str, float]:
    """What is left of the differences between tiles: a twin that gives the mean of all has a high cosine, too.

    Returns:
        `centred_cosine_median`: of embeddings less their mean; `spread`: the twin's deviation by its teacher's.
    """
    parts = [embeddings - embeddings.mean(axis=0) for embeddings in (teacher, twin)]
    sizes = [np.linalg.norm(part, axis=1) for part in parts]
    cosines = (parts[0] * parts[1]).sum(axis=1) / (sizes[0] * sizes[1])
    spread = np.sqrt((sizes[1] ** 2).mean() / (sizes[0] ** 2).mean())
    return {"centred_cosine_median": float(np.median(cosines)), "spread": float(spread)}


def outliers(encoder: "EncoderModule", tiles: "Tensor") -> dict[str, float]:
    """How far activations lie out.

    Returns:
        `stream_peak`: the largest absolute value of the residual stream by its root mean square, in the worst block;
        `kurtosis_median` and `kurtosis_largest`: of what linear layers read (3 for a normal distribution).
    """
    import torch
    from torch import nn

    peaks: list[float] = []
    kurtoses: list[float] = []

    def read(_: Any, inputs: Any) -> None:
        centred = inputs[0].double() - inputs[0].double().mean()
        kurtoses.append(float(centred.pow(4).mean() / centred.square().mean().square()))

    def wrote(_module: Any, _inputs: Any, stream: Any) -> None:
        peaks.append(float(stream.abs().max() / stream.square().mean().sqrt()))

    network: Any = encoder.backbone
    hooks = [block.register_forward_hook(wrote) for block in network.blocks]
    hooks += [layer.register_forward_pre_hook(read) for layer in network.modules() if isinstance(layer, nn.Linear)]
    with torch.inference_mode():
        encoder(tiles)
    for hook in hooks:
        hook.remove()
    return {
        "stream_peak": max(peaks),
        "kurtosis_median": float(np.median(kurtoses)),
        "kurtosis_largest": max(kurtoses),
    }


if __name__ == "__main__":
    main()
