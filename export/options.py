"""What can be asked of `atlas-export`."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from cyclopts import Parameter

from atlas_edge.options import Flag, Options, TileFit
from atlas_edge.targets import Precision, Target


def _target(_: Any, tokens: Sequence[Any]) -> str:
    """`auto`, or a target; of both at once cyclopts says only that it is neither."""
    name: str = tokens[0].value
    names = ("auto", *Target)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        meant = f". Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{name!r} is none of {', '.join(names)}{meant}")
    return name if name == "auto" else Target(name)


@dataclass(frozen=True, kw_only=True)
class Request(Options):
    """Options that a plan, or else a default, decides where they are left out; see `config.resolve`.

    Attributes:
        target: What the bundle is built for; auto builds all that this machine can, into one package.
        precision: Number format of the compute-heavy layers.
        plan: A plan that atlas-quantize search saved: target, precision, recipe and calibration in one.
        recipe: A recipe that atlas-quantize recipe saved; the target's default when left out.
        batch: One size fixes the graph's batch; min,opt,max is TensorRT's profile; dynamic when left out.
        calib_limit: Most tiles to calibrate on; the plan's or 300 when left out.
        fit_limit: Most tiles to fit the probes on; the plan's or 600 when left out.
        eval_limit: Most tiles to evaluate on; 2000 when left out.
        compute_capability: GPU generations of a TensorRT-RTX engine; 8.6,8.9,12.0 (RTX 30, 40, 50) when left out.
        seed: Seed of every random choice; the plan's or 0 when left out.
    """

    target: Annotated[Literal["auto"] | Target | None, Parameter(converter=_target)] = None
    precision: Precision | None = None
    plan: Path | None = None
    recipe: Path | None = None
    batch: str = ""
    calib_limit: int | None = None
    fit_limit: int | None = None
    eval_limit: int | None = None
    compute_capability: str = ""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Choices(Options):
    """Options that hold as they are given.

    Attributes:
        calib: Tiles that set the scales and fit the probes: a folder, pack, parquet or HDF5; PATH@SPLIT for one split;
            or a slide, or a folder of slides, whose tissue is cut to tiles (224 px, 0.5 µm per pixel; SLIDE@MPP).
        eval: Tiles that the bundle is judged on; the test split of --calib when left out.
        out: Bundle folder; bundles/<model>-<target>-<precision> when left out.
        max_drop_pp: Budget on the upper end of the accuracy drop's 95 % interval, percentage points; exit 3 when
            missed.
        tile_fit: What to do with tiles of another size than the encoder's.
        known: The known encoder that a folder holds, such as uni2-h, where its config.json does not name it.
        pooling: Pooling of the tokens; the model's own, whatever it is, when left out.
        graph_output: What the bundle gives: the embedding, or patch tokens beside it (dense features).
        tile_px: Build the encoder for tiles of this side, position embeddings resampled; its own side when left out.
        patch: Patch side of a registry student in pixels: 8, 14 or 16.
        registers: Register tokens of a registry student.
        hardware_compatible: TensorRT only: an engine for Ampere and every later GPU generation.
        version_compatible: TensorRT only: an engine that later TensorRT versions run, too.
        batch_independent: TensorRT targets: an embedding does not depend on the rest of its batch.
        portable: ONNX and OpenVINO, int8: weights of 7 bits, so that every processor and any OpenVINO or ONNX Runtime
            computes the file rightly.
        merge_tokens: INT8: blocks of a vision transformer have this many times less to compute, because patch
            tokens that are alike become one; 1 merges none. Gate it: it costs accuracy.
        quantize_attention: TensorRT targets, int8: quantize the products of attention, too; at most 512 tokens.
        refit: TensorRT targets, beside the GPU: an engine whose weights can be replaced.
        strip: TensorRT targets, beside the GPU: leave the weights in the bundle's ONNX.
        timing_cache: TensorRT only: keep build-time measurements in this file.
        threads: Inference threads; the runtime's own choice when left out.
        speed: Time the bundle against the reference.
        overwrite: Replace an existing bundle; never another folder.
        keep_paths: Write paths, and the names of tiles, into manifest and report. They are left out otherwise: in a
            hospital they name patients.
    """

    calib: str | None = None
    eval: str | None = None
    out: Path | None = None
    max_drop_pp: Annotated[float | None, Ge(0), Parameter(name="--max-drop")] = None
    tile_fit: TileFit = "exact"
    known: Annotated[str | None, Parameter(name="--as")] = None
    pooling: Literal["cls", "cls+mean", "avg"] | None = None
    graph_output: Annotated[Literal["embedding", "tokens"], Parameter(name="--output")] = "embedding"
    tile_px: Annotated[int | None, Ge(1), Le(4096)] = None
    patch: int | None = None
    registers: int | None = None
    hardware_compatible: Flag = False
    version_compatible: Flag = False
    batch_independent: Flag = False
    portable: Flag = False
    merge_tokens: Annotated[float | None, Ge(1)] = None
    quantize_attention: Flag = False
    refit: Flag = False
    strip: Flag = False
    timing_cache: Path | None = None
    threads: Annotated[int | None, Ge(1)] = None
    speed: bool = True
    overwrite: Flag = False
    keep_paths: Flag = False


def listed(text: str) -> tuple[str, ...]:
    """The parts of `8.6,8.9`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def batch_sizes(text: str) -> tuple[int, ...]:
    """The sizes of `8` or `min,opt,max`.

    Raises:
        UsageError: It is neither.
    """
    from atlas_edge.errors import UsageError

    try:
        return tuple(map(int, listed(text)))
    except ValueError as error:
        raise UsageError(
            f"--batch {text!r} is not a size or min,opt,max", hint="--batch 8 or --batch 1,32,64"
        ) from error
