"""`atlas-export`: an encoder in, a verified bundle out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from atlas_edge.cli import console, make_app, print_json, run_app
from atlas_edge.errors import GateFailed, RuntimeMissing, UsageError
from atlas_edge.export.commands.faces import face, layout
from atlas_edge.export.commands.provenance import sbom, sign
from atlas_edge.export.commands.push import push
from atlas_edge.export.options import Choices, Request, batch_sizes, listed
from atlas_edge.options import Flag, Json, Many, Output

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
    request: Request = Request(),
    choices: Choices = Choices(),
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Export.

    Args:
        model: Registry name, model folder, or hf-hub:organisation/name; the default student when left out.
        request: What a plan or a default decides where it is left out.
        choices: What holds as it is given.
        dry_run: Check everything that can be checked without work, print the resolved configuration, write nothing.
        output: What is printed.
    """
    from atlas_edge.export.config import resolve
    from atlas_edge.models.load import DEFAULT_MODEL

    if request.target == "auto":
        from atlas_edge.export.commands.auto import run_auto

        run_auto(model or DEFAULT_MODEL, request, choices, dry_run=dry_run, output=output)
        return
    screen = output.screen()
    asked = vars(request) | {"batch": batch_sizes(request.batch)}
    capabilities = listed(asked.pop("compute_capability"))
    config = resolve(model=model or DEFAULT_MODEL, compute_capabilities=capabilities, **asked, **vars(choices))
    if dry_run:
        _dry_run(config, screen, json=output.json)
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
    if output.json:
        print_json(as_dict(result))
    if not result.gate_open:
        raise GateFailed(gate or "gate", hint="calibrate on more tiles, or choose --precision bf16 or fp16")


@app.command
def verify(bundle: Path, *, public_key: Path | None = None, signature: Path | None = None, json: Json = False) -> None:
    """Compare every file of a bundle with its manifest: hashes, sizes, nothing missing, nothing added.

    Warns of an INT8 bundle that only atlas-edge runs rightly on this processor.

    Args:
        bundle: Bundle folder, or a package of several.
        public_key: Check that the holder of this key signed it (atlas-export sign), too.
        signature: That signature; BUNDLE.sig beside the folder when left out.
        json: Print the manifest as JSON on stdout.
    """
    from atlas_edge.package.manifest import is_package

    _check_signature(bundle, public_key, signature)
    if is_package(bundle):
        from atlas_edge.export.commands.pack import run_verify_package

        run_verify_package(bundle, json=json)
        return
    from atlas_edge.bundle import verify_bundle
    from atlas_edge.runtimes.plain import plain_runtime_notice, saturates_here

    manifest = verify_bundle(bundle)
    portable = manifest.execution.portable
    notice = plain_runtime_notice(manifest.target, manifest.precision, portable=portable)
    saturates = saturates_here() if notice else False
    if saturates is not False:
        has = "has" if saturates else "may have"  # without OpenVINO it cannot be tried
        console().print(f"WARNING: this processor {has} neither VNNI nor AMX: {notice}", style="yellow")
    if json:
        print_json(manifest.model_dump(mode="json"))
        return
    size = sum(file.size_bytes for file in manifest.files)
    tokens = "" if manifest.encoder.tokens is None else f" with {manifest.encoder.tokens}"
    print(
        f"{bundle}: intact. {manifest.encoder.name}{tokens}, {manifest.target.value} {manifest.precision.value}"
        f"{' portable' if portable else ''}, "
        f"{len(manifest.files)} files, {size / 1e6:.1f} MB, made {manifest.created_utc}"
    )


@app.command
def pack(*bundles: Path, out: Path, overwrite: Flag = False, output: Output = Output()) -> None:
    """Pack bundles of one model into one folder, from which each workstation takes what is best there.

    Files that are equal lie in it once. Every command takes the folder in place of a bundle. Example:

        atlas-export pack bundles/s-openvino-int8 bundles/s-openvino-fp32 bundles/s-onnx-int8 --out s-package

    Args:
        bundles: Bundle folders, or packages, whose variants are taken.
        out: Folder to write.
        overwrite: Replace a package that is there.
        output: What is printed.
    """
    from atlas_edge.export.commands.pack import run_pack

    run_pack(bundles, out, overwrite=overwrite, output=output)


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

    sizes = batch_sizes(batch)
    if len(sizes) not in (0, 1, 3):
        raise UsageError(f"--batch {batch!r} is not a size or min,opt,max", hint="--batch 8 or --batch 1,32,64")
    manifest = rebuild_bundle(
        bundle,
        out=out,
        compute_capabilities=listed(compute_capability),
        batch_profile=(sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else None,
        strip_weights=strip,
        timing_cache=timing_cache,
        command=("atlas-export", *sys.argv[1:]),
    )
    if json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print(f"{out or bundle}: rebuilt for {built_for(manifest)}")


@app.command(name="import")
def import_(
    file: Path,
    /,
    *,
    known: Annotated[str | None, Parameter(name="--as")] = None,
    out: Path,
    overwrite: Flag = False,
    dry_run: Flag = False,
    output: Output = Output(),
) -> None:
    """Bring a checkpoint to the form that every command takes: config.json and model.safetensors, as timm has them.

    Takes pickled checkpoints (read once, tensors alone) and safetensors under the names of timm, DINOv2, or
    transformers' ViT and DINOv2. What was made is compared with the network that it came from.

    Args:
        file: A checkpoint, or a folder with one; a config.json beside it says what network it is.
        known: The known encoder that it is, such as uni2-h or owkin/phikon, where config.json does not say enough.
        out: Model folder to write.
        overwrite: Replace a folder that this command wrote; never another one.
        dry_run: Read the checkpoint and say what would be written, write nothing.
        output: What is printed.
    """
    from atlas_edge.export.commands.import_model import run_import

    run_import(file, known=known, out=out, overwrite=overwrite, dry_run=dry_run, output=output)


@app.command
def inspect(
    model: str,
    /,
    *,
    known: Annotated[str | None, Parameter(name="--as")] = None,
    pooling: Literal["cls", "cls+mean", "avg"] | None = None,
    tile_px: int | None = None,
    output: Output = Output(),
) -> None:
    """Say what an encoder is, where each fact of it comes from, and which way it takes to each target and precision.

    Nothing is calibrated or built. Of a package it says which variants it has, and what each cost.

    Args:
        model: Registry name, model folder, hf-hub:organisation/name, or a package.
        known: The known encoder that a folder holds, where its config.json does not name it.
        pooling: Pooling of the tokens; the model's own when left out.
        tile_px: The encoder built for tiles of this side; its own side when left out.
        output: What is printed.
    """
    from atlas_edge.package.manifest import is_package

    if is_package(model):
        from atlas_edge.export.commands.pack import run_inspect_package

        run_inspect_package(Path(model), output=output)
        return
    from atlas_edge.export.commands.inspect_model import run_inspect

    run_inspect(model, known=known, pooling=pooling, tile_px=tile_px, output=output)


@app.command
def kit(
    *bundles: Path,
    out: Path,
    platform: Literal["win_amd64", "manylinux"],
    python: str = "3.12",
    extra: Many = ("slides",),
    wheel: Path | None = None,
    overwrite: Flag = False,
    output: Output = Output(),
) -> None:
    """Pack bundles with all that a workstation without internet needs to run them, and a script that installs it.

    Uses the network (the package index) here, so that none is needed there. Example:

        atlas-export kit bundles/atlas2-s-openvino-int8 --platform win_amd64 --out kit

    Args:
        bundles: Bundle folders, or packages.
        out: Folder to write.
        platform: System of the workstation, on x86-64.
        python: Version of Python that it has.
        extra: Extras of atlas-edge beside those of the bundles' runtimes.
        wheel: atlas-edge's own wheel; built from the checkout that runs this when left out.
        overwrite: Replace a kit that is there.
        output: What is printed.
    """
    from dataclasses import asdict

    from atlas_edge.export.kit import make_kit

    screen = output.screen()
    if not bundles:
        raise UsageError("no bundle to pack", hint="atlas-export kit BUNDLE --platform win_amd64 --out KIT")
    made = make_kit(
        bundles,
        out,
        platform=platform,
        python=python,
        extras=extra,
        wheel=wheel,
        overwrite=overwrite,
        progress=lambda what: screen.print(what, style="dim"),
    )
    script = "install.ps1" if platform == "win_amd64" else "install.sh"
    screen.print(f"{out}: {len(made.wheels)} wheels, {made.size_bytes / 1e6:.0f} MB. There: {script}, then README.md")
    if output.json:
        print_json(asdict(made))


@app.command
def doctor(package: Path | None = None, /, *, json: Json = False) -> None:
    """Say what this machine can build and run: PASS, WARN or FAIL, each with its fix. Exit 4 after a FAIL.

    Then which variant to run on it and what an upgrade would bring; the last line is for whoever helps: it holds no
    name of a user, a host or a folder.

    Args:
        package: Name the variant of this package: the one that atlas-bench choose found, else one by a rule.
        json: Print the diagnosis as JSON on stdout.
    """
    from atlas_edge.export.doctor.checks import diagnose
    from atlas_edge.export.doctor.table import print_diagnosis

    diagnosis = diagnose(package=package)
    if json:
        print_json(diagnosis.as_dict())
    else:
        print_diagnosis(diagnosis)
    if diagnosis.failed:
        raise RuntimeMissing("this machine lacks something that every job needs", hint="see the lines marked FAIL")


for command in (face, layout, sign, sbom, push):
    app.command(command)


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


def _check_signature(bundle: Path, public_key: Path | None, signature: Path | None) -> None:
    if public_key is None:
        if signature is not None:
            raise UsageError("a signature needs the public key that it is checked by", hint="give --public-key")
        return
    from atlas_edge.package.signature import check_signature

    check_signature(bundle, public_key, signature)
    console().print(f"signed by the holder of {public_key}", soft_wrap=True)


def _dry_run(config: "ExportConfig", screen: "Console", *, json: bool) -> None:
    from atlas_edge.bundle import MANIFEST
    from atlas_edge.export.backends.base import backend_of
    from atlas_edge.export.tile_sets import open_tile_sets
    from atlas_edge.system.atomic import check_vacant

    check_vacant(config.output, marks=(MANIFEST,), overwrite=config.overwrite)
    backend_of(config.target).check(config)
    tile_sets = open_tile_sets(config)
    for role in ("calibration", "evaluation"):
        choice = getattr(tile_sets, role)
        source, count = choice.source, ("from " if role == "calibration" else "") + str(len(choice.records))
        screen.print(f"{role}: {count} tiles of {source.name} ({source.split or 'all'})")
    screen.print(f"would write {config.output}; nothing was written")
    if json:
        print_json({"config": config.as_json(), "out": str(config.output)})
