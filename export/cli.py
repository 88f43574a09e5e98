"""`atlas-export`: an encoder in, a verified bundle out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from atlas_edge.cli import console, make_app, print_json, run_app, set_verbosity
from atlas_edge.errors import GateFailed, RuntimeMissing
from atlas_edge.options import Flag, Json, Quiet, Verbose

if TYPE_CHECKING:
    from rich.console import Console

    from atlas_edge.export.config import ExportConfig

HELP = """Turn an encoder into a verified bundle for the workstation beside the scanner.

Example, on real tiles (the train split calibrates, the test split judges):

    atlas-export my-student --target openvino --precision int8 --calib tiles --eval tiles --max-drop 1

Without MODEL it takes the default student, without tiles the synthetic sample.
"""

app = make_app("atlas-export", HELP)


@app.default
def export(
    model: str | None = None,
    /,
    *,
    target: Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"] | None = None,
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8"] | None = None,
    plan: Path | None = None,
    recipe: Path | None = None,
    calib: str | None = None,
    eval: str | None = None,
    out: Path | None = None,
    batch: str = "",
    max_drop: float | None = None,
    calib_limit: int | None = None,
    fit_limit: int | None = None,
    eval_limit: int | None = None,
    tile_fit: Literal["exact", "crop", "resize"] = "exact",
    pooling: Literal["cls", "cls+mean", "avg"] | None = None,
    tile_px: int | None = None,
    patch: int | None = None,
    registers: int | None = None,
    compute_capability: str = "",
    hardware_compatible: Flag = False,
    version_compatible: Flag = False,
    batch_independent: Flag = False,
    quantize_attention: Flag = False,
    refit: Flag = False,
    strip: Flag = False,
    timing_cache: Path | None = None,
    seed: int | None = None,
    threads: int | None = None,
    speed: bool = True,
    overwrite: Flag = False,
    keep_paths: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export.

    Args:
        model: Registry name, model folder, or hf-hub:organisation/name; the default student when left out.
        target: What the bundle is built for.
        precision: Number format of the compute-heavy layers.
        plan: A plan that atlas-quantize search saved: target, precision, recipe and calibration in one.
        recipe: A recipe that atlas-quantize recipe saved; the target's default when left out.
        calib: Tiles that set the scales and fit the probes: a folder, pack, parquet or HDF5; PATH@SPLIT for one split;
            or a slide, or a folder of slides, whose tissue is cut to tiles (224 px, 0.5 µm per pixel; SLIDE@MPP).
        eval: Tiles that the bundle is judged on; the test split of --calib when left out.
        out: Bundle folder; bundles/<model>-<target>-<precision> when left out.
        batch: One size fixes the graph's batch; min,opt,max is TensorRT's profile; dynamic when left out.
        max_drop: Budget on the upper end of the accuracy drop's 95 % interval, percentage points; exit 3 when missed.
        calib_limit: Most tiles to calibrate on; the plan's or 300 when left out.
        fit_limit: Most tiles to fit the probes on; the plan's or 600 when left out.
        eval_limit: Most tiles to evaluate on; 2000 when left out.
        tile_fit: What to do with tiles of another size than the encoder's.
        pooling: Pooling of the tokens; the model's own, whatever it is, when left out.
        tile_px: Build the encoder for tiles of this side, position embeddings resampled; its own side when left out.
        patch: Patch side of a registry student in pixels: 8, 14 or 16.
        registers: Register tokens of a registry student.
        compute_capability: GPU generations of a TensorRT-RTX engine; 8.6,8.9,12.0 (RTX 30, 40, 50) when left out.
        hardware_compatible: TensorRT only: an engine for Ampere and every later GPU generation.
        version_compatible: TensorRT only: an engine that later TensorRT versions run, too.
        batch_independent: TensorRT targets: an embedding does not depend on the rest of its batch.
        quantize_attention: TensorRT targets, int8: quantize the products of attention, too; at most 512 tokens.
        refit: TensorRT targets, beside the GPU: an engine whose weights can be replaced.
        strip: TensorRT targets, beside the GPU: leave the weights in the bundle's ONNX.
        timing_cache: TensorRT only: keep build-time measurements in this file.
        seed: Seed of every random choice; the plan's or 0 when left out.
        threads: Inference threads; the runtime's own choice when left out.
        speed: Time the bundle against the reference.
        overwrite: Replace an existing bundle; never another folder.
        keep_paths: Write paths, and the names of tiles, into manifest and report. They are left out otherwise: in a
            hospital they name patients.
        dry_run: Check everything that can be checked without work, print the resolved configuration, write nothing.
        json: Print the report as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    from atlas_edge.export.config import resolve
    from atlas_edge.models.load import DEFAULT_MODEL

    set_verbosity(quiet=quiet, verbose=verbose)
    config = resolve(
        model=model or DEFAULT_MODEL,
        target=target,
        precision=precision,
        plan=plan,
        recipe=recipe,
        calib=calib,
        eval=eval,
        out=out,
        batch=_sizes(batch),
        max_drop_pp=max_drop,
        calib_limit=calib_limit,
        fit_limit=fit_limit,
        eval_limit=eval_limit,
        tile_fit=tile_fit,
        pooling=pooling,
        tile_px=tile_px,
        patch=patch,
        registers=registers,
        compute_capabilities=_listed(compute_capability),
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        batch_independent=batch_independent,
        quantize_attention=quantize_attention,
        refit=refit,
        strip=strip,
        timing_cache=timing_cache,
        seed=seed,
        threads=threads,
        speed=speed,
        overwrite=overwrite,
        keep_paths=keep_paths,
    )
    screen = console(quiet=quiet)
    if dry_run:
        _dry_run(config, screen, json=json)
        return
    from atlas_edge.export.pipeline import STEPS, export_bundle
    from atlas_edge.export.report.summary import as_dict, gate_line, next_command, notes, table
    from atlas_edge.export.steps import Steps

    command = ("atlas-export", *sys.argv[1:])
    result = export_bundle(config, Steps(screen, STEPS), command=command)
    screen.print(table(result))
    for note in notes(result):
        screen.print(note, style="dim")
    gate = gate_line(result)
    if gate:
        screen.print(gate, style="bold")
    screen.print(f"bundle: {result.folder}")
    screen.print(f"next:   {next_command(result)}")
    if json:
        print_json(as_dict(result))
    if not result.gate_open:
        raise GateFailed(gate or "gate", hint="calibrate on more tiles, or choose --precision bf16 or fp16")


@app.command
def verify(bundle: Path, *, json: Json = False) -> None:
    """Compare every file of a bundle with its manifest: hashes, sizes, nothing missing, nothing added.

    Warns of an INT8 bundle that only atlas-edge runs rightly on this processor.

    Args:
        bundle: Bundle folder.
        json: Print the manifest as JSON on stdout.
    """
    from atlas_edge.bundle import verify_bundle
    from atlas_edge.runtimes.plain import plain_runtime_notice, saturates_here

    manifest = verify_bundle(bundle)
    notice = plain_runtime_notice(manifest.target, manifest.precision)
    saturates = saturates_here() if notice else False
    if saturates is not False:
        has = "has" if saturates else "may have"  # without OpenVINO it cannot be tried
        console().print(f"WARNING: this processor {has} neither VNNI nor AMX: {notice}", style="yellow")
    if json:
        print_json(manifest.model_dump(mode="json"))
        return
    size = sum(file.size_bytes for file in manifest.files)
    print(
        f"{bundle}: intact. {manifest.encoder.name}, {manifest.target.value} {manifest.precision.value}, "
        f"{len(manifest.files)} files, {size / 1e6:.1f} MB, made {manifest.created_utc}"
    )


@app.command
def rebuild(
    bundle: Path,
    *,
    out: Path | None = None,
    batch: str = "",
    compute_capability: str = "",
    strip: bool | None = None,
    timing_cache: Path | None = None,
    json: Json = False,
) -> None:
    """Build the engines of a TensorRT bundle again, for the GPU of this machine, from the graphs inside it.

    Args:
        bundle: Bundle folder of a TensorRT target.
        out: Where the new bundle goes; in place of the old one when left out.
        batch: min,opt,max or one size; as it was when left out.
        compute_capability: GPU generations; those of this machine's GPUs, else the ones it had, when left out.
        strip: Leave the weights in the bundle's ONNX; as it was when left out.
        timing_cache: Keep TensorRT's build-time measurements in this file.
        json: Print the new manifest as JSON on stdout.
    """
    from atlas_edge.errors import UsageError
    from atlas_edge.export.rebuild import rebuild_bundle
    from atlas_edge.runtimes.tensorrt_fit import built_for

    sizes = _sizes(batch)
    if len(sizes) not in (0, 1, 3):
        raise UsageError(f"--batch {batch!r} is not a size or min,opt,max", hint="--batch 8 or --batch 1,32,64")
    manifest = rebuild_bundle(
        bundle,
        out=out,
        compute_capabilities=_listed(compute_capability),
        batch_profile=(sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else None,
        strip_weights=strip,
        timing_cache=timing_cache,
        command=("atlas-export", *sys.argv[1:]),
    )
    if json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print(f"{out or bundle}: rebuilt for {built_for(manifest)}")


@app.command
def doctor(*, json: Json = False) -> None:
    """Say what this machine can build and run: PASS, WARN or FAIL, each with its fix. Exit 4 after a FAIL.

    Args:
        json: Print the diagnosis as JSON on stdout.
    """
    from atlas_edge.export.doctor.checks import diagnose
    from atlas_edge.export.doctor.table import print_diagnosis

    diagnosis = diagnose()
    if json:
        print_json(diagnosis.as_dict())
    else:
        print_diagnosis(diagnosis)
    if diagnosis.failed:
        raise RuntimeMissing("this machine lacks something that every job needs", hint="see the lines marked FAIL")


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _sizes(text: str) -> tuple[int, ...]:
    from atlas_edge.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(
            f"--batch {text!r} is not a size or min,opt,max", hint="--batch 8 or --batch 1,32,64"
        ) from error


def _dry_run(config: "ExportConfig", screen: "Console", *, json: bool) -> None:
    from atlas_edge.bundle import MANIFEST
    from atlas_edge.export.requirements import check_requirements
    from atlas_edge.export.tile_sets import open_tile_sets
    from atlas_edge.system.atomic import check_vacant

    check_vacant(config.output, marks=(MANIFEST,), overwrite=config.overwrite)
    check_requirements(config)
    tile_sets = open_tile_sets(config)
    for role in ("calibration", "evaluation"):
        choice = getattr(tile_sets, role)
        source, count = choice.source, ("from " if role == "calibration" else "") + str(len(choice.records))
        screen.print(f"{role}: {count} tiles of {source.name} ({source.split or 'all'})")
    screen.print(f"would write {config.output}; nothing was written")
    if json:
        print_json({"config": config.model_dump(mode="json"), "out": str(config.output)})
