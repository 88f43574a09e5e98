"""Load every known encoder's network with random weights and write what comes of it: `python tools/encoder_table.py`.

The table goes between two marks in a Markdown file, so that the one in docs/encoders.md can be made again:

    python tools/encoder_table.py docs/encoders.md
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import Agreement, embedding_agreement
from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import AtlasError, InputError, UsageError
from atlas_edge.export.backends.base import Way, backend_of
from atlas_edge.export.inspection import inspect_model
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.models.published.known import Known, known_encoders
from atlas_edge.models.timm_config import CONFIG, WEIGHTS
from atlas_edge.models.timm_folder import with_layers
from atlas_edge.quantize.paths import FITTED, FLOAT, LAYER_WISE, NEAREST, NNCF
from atlas_edge.spec import EncoderSpec
from atlas_edge.targets import Precision, Target
from parts.marked import around

BEGIN, END = "<!-- encoder table: begin -->", "<!-- encoder table: end -->"
# Beyond it, blocks are left out: a ViT-g in float32 has 4.5 GB, and its file as much again.
_WHOLE_MILLIONS = 100
_FEW_BLOCKS = 2
# Of LayerScale: with the 1e-5 that DINOv2 begins from, blocks of random weights would have no say.
_SCALE = 0.1
_TILES = 2
_CALIBRATION, _JUDGED, _PIECE = 16, 32, 8
_SHORT = {
    FLOAT: "float",
    NNCF: "NNCF",
    LAYER_WISE: "layer by layer",
    FITTED: "block by block",
    NEAREST: "to the nearest",
}
_WAYS = ["OpenVINO INT8", "ONNX and TensorRT INT8", "TensorRT FP8"]
_STUDENTS = {"yes": "yes", "non-commercial": "non-commercial", "no": "no", None: "not checked"}

HELP = """Load every known encoder's network with random weights: what comes of it, and which way each target takes it.

Example:

    python tools/encoder_table.py docs/encoders.md
"""

app = make_app("encoder_table", HELP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One encoder.

    Attributes:
        known: Its entry.
        parameters: Of the whole network; None where timm cannot build it.
        blocks: Built, of all; None for a network without.
        failed: Why it did not load, with the exit code that a command would have ended in.
        difference: Worst 1 - cosine to timm's own network.
        spec: Of the loaded encoder.
        ways: Of every target and precision.
        int8: Agreement of OpenVINO's INT8 with full precision; None where it was not asked for.
    """

    known: Known
    parameters: int | None = None
    blocks: tuple[int, int] | None = None
    failed: str | None = None
    difference: float | None = None
    spec: EncoderSpec | None = None
    ways: dict[Target, dict[Precision, Way]] | None = None
    int8: Agreement | None = None


@app.default
def encoder_table(
    document: Path,
    /,
    *,
    only: str = "",
    depth: Annotated[int | None, Ge(1)] = None,
    int8: bool = False,
) -> None:
    """Write the table.

    Args:
        document: Markdown file with the two marks.
        only: Names of the encoders, with commas between them; all when left out.
        depth: Most blocks; when left out, all of a network up to 100 M parameters, and two of a larger one.
        int8: Bring each to OpenVINO INT8 on a few synthetic tiles, and compare.
    """
    before, after = around(document, BEGIN, END)
    names = [name.strip() for name in only.split(",") if name.strip()] or list(known_encoders())
    unknown = [name for name in names if name not in known_encoders()]
    if unknown:
        raise UsageError(f"no known encoder is called {unknown[0]!r}", hint="leave --only out for all")
    rows = []
    for row in _made([known_encoders()[name] for name in names], depth=depth, int8=int8):
        rows.append(row)
        print(f"{row.known.name}: {row.failed or 'loads'}", file=sys.stderr)
    document.write_text(f"{before}{BEGIN}\n{markdown(rows, int8=int8)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


def make_row(known: Known, *, depth: int | None = None, int8: bool = False) -> Row:
    """Build the network, load it as a user would, and compare.

    Args:
        known: The encoder.
        depth: Most blocks; by its size when None.
        int8: Compare OpenVINO's INT8, too.
    """
    if known.architecture is None:
        return Row(known=known, failed=_refusal(known))
    facts: dict[str, Any] = {"known": known}
    try:
        facts["parameters"], whole = _size(known)
        built = min(whole, depth or (whole if facts["parameters"] <= _WHOLE_MILLIONS * 1e6 else _FEW_BLOCKS))
        facts["blocks"] = (built, whole)
        with tempfile.TemporaryDirectory() as scratch:
            network = _network(known, built)
            model = load_model(str(_folder(Path(scratch) / known.name, known, network, built)))
            facts["failed"] = _refusal(known)
            facts["difference"] = _difference(known, network, model)
            facts["spec"], facts["ways"] = model.spec, inspect_model(model).ways
            if int8:
                facts["int8"] = _int8_agreement(model, Path(scratch))
    except AtlasError as error:
        facts["failed"] = f"exit {error.exit_code}: {error.message}"
    except Exception as error:  # what a command would call a bug: the table must say it
        facts["failed"] = f"exit 1: {error!r}"
    return Row(**facts)


def _made(encoders: Sequence[Known], **options: Any) -> Iterator[Row]:
    """Each in a process of its own where INT8 is asked for, since some libraries keep what a network took."""
    if not options["int8"] or len(encoders) == 1:
        yield from (make_row(known, **options) for known in encoders)
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        yield from pool.map(partial(make_row, **options), encoders)


def markdown(rows: Sequence[Row], *, int8: bool) -> str:
    """The table, and the sentences above it."""
    ways = [_all_ways(row.ways) for row in rows]
    taken = set(filter(any, ways))
    shared = len(taken) == 1
    columns = ["encoder", "network", "px, µm per pixel", "embedding", "licence", "students", "loads", "1 - cosine"]
    columns += [] if shared else _WAYS
    columns += ["INT8 cosine median", "p1"] if int8 else []
    right = {"1 - cosine", "INT8 cosine median", "p1"}
    every = ", ".join(f"{name} {way}" for name, way in zip(_WAYS, next(iter(taken), ()), strict=False))
    lines = [
        f"{len(rows)} encoders in their exact shape with random weights, since no published ones were at hand; where a "
        f"network has more than {_WHOLE_MILLIONS} M parameters, {_FEW_BLOCKS} of its blocks. *1 - cosine* is the "
        "embedding's to that of timm's own network, pooled as published. FP32, FP16 and BF16 are floating point on "
        'every target. INT8 is "layer by layer" (the fast graph) or through NNCF for OpenVINO, "block by block" or "to '
        'the nearest" with ModelOpt for the others. An encoder in italics cannot be loaded; where timm has its shape, '
        "the ways are that shape's." + (f" **All take the same way**: {every}." if shared else ""),
        "",
        f"| {' | '.join(columns)} |",
        f"|{'|'.join('---:' if name in right else '---' for name in columns)}|",
    ]
    lines += [_line(row, () if shared else way, int8=int8) for row, way in zip(rows, ways, strict=True)]
    reasons = [f"- *{row.known.title}* cannot be loaded: {row.known.cannot}." for row in rows if row.known.cannot]
    failed = [f"- {row.known.title}: {row.failed}." for row in rows if row.failed and not row.known.cannot]
    notes = [f"- {row.known.title}: {row.known.note}." for row in rows if row.known.note]
    unchecked = [
        f"- {row.known.title}: not checked against its own files: {', '.join(row.known.unchecked)}."
        for row in rows
        if row.known.unchecked
    ]
    return "\n".join([*lines, "", *failed, *reasons, *notes, *unchecked])


def _line(row: Row, ways: Sequence[str], *, int8: bool) -> str:
    known, spec = row.known, row.spec
    title = f"*{known.title}*" if known.cannot else known.title
    network = "" if row.parameters is None else f"{row.parameters / 1e6:.1f} M"
    if row.blocks is not None and row.blocks[0] < row.blocks[1]:
        network += f", {row.blocks[0]} of {row.blocks[1]} blocks"
    scale = ", ".join(f"{mpp:g}" for mpp in known.mpp) or "–"
    cells = [
        f"{title} (`{known.name}`)",
        network,
        f"{known.tile_px}; {scale}",
        "" if spec is None or known.cannot else f"{spec.embed_dim}-d {spec.pooling}",
        known.licence or "not found",
        _STUDENTS[known.students],
        "yes" if row.failed is None else f"no, {row.failed.partition(':')[0]}",
        "" if row.difference is None else f"{max(row.difference, 0.0):.0e}",
        *ways,
    ]
    if int8:
        cells += ["", ""] if row.int8 is None else [f"{row.int8.cosine_median:.5f}", f"{row.int8.cosine_p1:.5f}"]
    return f"| {' | '.join(cells)} |"


def _all_ways(found: Mapping[Target, Mapping[Precision, Way]] | None) -> tuple[str, ...]:
    """One a column of `_WAYS`."""
    return (
        _way(found, Target.OPENVINO, Precision.INT8),
        _ways(found, (Target.ONNX, Target.TENSORRT, Target.TENSORRT_RTX), Precision.INT8),
        _ways(found, (Target.TENSORRT, Target.TENSORRT_RTX), Precision.FP8),
    )


def _ways(
    found: Mapping[Target, Mapping[Precision, Way]] | None, targets: Sequence[Target], precision: Precision
) -> str:
    """One way where the targets share it; each by name where not."""
    ways = {target: _way(found, target, precision) for target in targets}
    if len(set(ways.values())) == 1:
        return next(iter(ways.values()))
    return "; ".join(f"{target.value} {way}" for target, way in ways.items())


def _way(found: Mapping[Target, Mapping[Precision, Way]] | None, target: Target, precision: Precision) -> str:
    if found is None:
        return ""
    way = found[target][precision]
    name = _SHORT.get(way.path or "", way.path or "no")
    return name if way.reason is None else f"{name}: {way.reason}"


def _refusal(known: Known) -> str | None:
    try:
        known.must_load()
    except InputError as error:
        return f"exit {error.exit_code}: {error.message}"
    return None


def _size(known: Known) -> tuple[int, int]:
    """Parameters and blocks of the whole network, without its weights."""
    import timm
    import torch

    with torch.device("meta"):
        network = timm.create_model(known.architecture, num_classes=0, **with_layers(known.arguments, Path(CONFIG)))
    return sum(parameter.numel() for parameter in network.parameters()), len(network.blocks)


def _network(known: Known, depth: int) -> Any:
    """The network as timm builds it from the table, random weights that all have a say."""
    import timm
    import torch

    arguments = with_layers(known.arguments | {"depth": depth}, Path(CONFIG))
    sized = {} if known.tile_px is None else {"img_size": known.tile_px}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(known.architecture, num_classes=0, **(sized | arguments)).eval()
        for name, parameter in network.named_parameters():
            if name.endswith(("gamma", "gamma_1", "gamma_2")):
                parameter.data.fill_(_SCALE)
            elif parameter.ndim < 2 or "token" in name:
                parameter.data += 0.02 * torch.randn_like(parameter)
    return network


def _folder(folder: Path, known: Known, network: Any, depth: int) -> Path:
    """As little as a folder can say; the table says the rest. A shape that cannot be loaded is written out."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
    config: dict[str, Any] = {"architecture": known.architecture, "model_args": {"depth": depth}, "name": known.name}
    if known.cannot is not None:
        del config["name"]
        config["model_args"] = known.arguments | {"img_size": known.tile_px, "depth": depth}
        config["pretrained_cfg"] = {"mean": known.mean, "std": known.std}
        if known.pooling is not None:
            config["pooling"] = known.pooling
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


def _difference(known: Known, network: Any, model: LoadedModel) -> float:
    """Worst 1 - cosine of the loaded encoder's embedding to timm's network, pooled here as it is published."""
    import torch

    tiles = torch.from_numpy(_tiles(model.spec.tile_px, _TILES))
    mean, std = (torch.tensor(known.mean or (0.485, 0.456, 0.406)), torch.tensor(known.std or (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        images = (tiles.permute(0, 3, 1, 2) / 255.0 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        found = model.module(tiles).double()
        if known.pooling == "cls+mean":
            tokens = network.forward_features(images)
            expected = torch.cat([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(dim=1)], dim=1)
        else:
            expected = network(images)
        if found.shape != expected.shape:
            raise InputError(f"it embeds as {tuple(found.shape)}, timm as {tuple(expected.shape)}")
        cosine = torch.nn.functional.cosine_similarity(found, expected.double(), dim=1)
    return float((1 - cosine).max())


def _int8_agreement(model: LoadedModel, scratch: Path) -> Agreement:
    """OpenVINO's INT8 by its default recipe against full precision, on synthetic tiles."""
    import torch

    from atlas_edge.bench.selftest.run import selftest_tiles
    from atlas_edge.models.graph import export_onnx
    from atlas_edge.quantize.backend import Job

    backend, graph = backend_of(Target.OPENVINO), scratch / "fp32.onnx"
    if backend.way(Precision.INT8, model.module).path != LAYER_WISE:
        export_onnx(model.module, model.spec, graph)
    tiles = selftest_tiles(model.spec)[: _CALIBRATION + _JUDGED]
    calibration, judged = tiles[:_CALIBRATION], tiles[_CALIBRATION:]
    job = Job(
        model=model,
        graph=graph,
        calibration=[calibration[at : at + _PIECE] for at in range(0, len(calibration), _PIECE)],
        precision=Precision.INT8,
        recipe=backend.default_recipe(Precision.INT8),
    )
    out = scratch / "bundle"
    out.mkdir()
    backend.write(job, backend.quantize(job, scratch), out)
    encoder = backend.open_written(job, out)
    try:
        found = np.concatenate([encoder.encode(judged[at : at + _PIECE]) for at in range(0, len(judged), _PIECE)])
    finally:
        encoder.close()
    with torch.inference_mode():
        parts = [model.module(torch.from_numpy(judged[at : at + _PIECE])) for at in range(0, len(judged), _PIECE)]
    return embedding_agreement(torch.cat(parts).numpy(), found)


def _tiles(px: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


if __name__ == "__main__":
    main()
