"""Several bundles of one model into one package: files that are equal lie in it once."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_edge.bundle import BESIDE, MANIFEST, model_folder, read_manifest, sha256_file, size_bytes, verify_bundle
from atlas_edge.errors import InputError, UsageError
from atlas_edge.manifest import Manifest
from atlas_edge.package.manifest import (
    OWN_FILES,
    VARIANTS,
    LeftOut,
    PackageFile,
    PackageManifest,
    Variant,
    is_package,
    read_package,
    variant_folder,
)
from atlas_edge.spec import Precision
from atlas_edge.system.atomic import atomic_folder

_EXACT_FIRST = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8, Precision.FP8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What was packed.

    Attributes:
        manifest: As written.
        size_bytes: Of all files.
        saved_bytes: Of files that lie there once and serve two variants.
    """

    manifest: PackageManifest
    size_bytes: int
    saved_bytes: int


def pack_bundles(bundles: Sequence[Path], out: Path, *, overwrite: bool = False) -> Packed:
    """Copy bundles of one model into a package.

    Args:
        bundles: Bundle folders, or packages, whose variants are taken.
        out: Folder to write.
        overwrite: Replace a package that is there.

    Raises:
        UsageError: None is given, or they are of different models.
        InputError: One cannot be read, or is damaged.
    """
    folders = [folder for bundle in bundles for folder in _folders(bundle)]
    if not folders:
        raise UsageError("no bundle to pack", hint="atlas-export pack BUNDLE BUNDLE --out PACKAGE")
    manifests = [verify_bundle(folder) for folder in folders]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        _check_same_model(folders[0], manifests[0], folder, manifest)
    with atomic_folder(out, marks=(VARIANTS,), overwrite=overwrite) as scratch:
        names = []
        for folder, manifest in zip(folders, manifests, strict=True):
            names.append(_free_name(scratch, manifest))
            copy_bundle(folder, manifest, scratch / names[-1])
        return complete_package(scratch, names)


def complete_package(folder: Path, names: Sequence[str], *, left_out: Sequence[LeftOut] = ()) -> Packed:
    """Make a package of the bundles in a folder: share what is equal, write `README.md` and `atlas-package.json`.

    Args:
        folder: Holds bundles, and nothing else.
        names: Their folders; of variants in the same precision the first stays the first.
        left_out: What is not there, and why.
    """
    names = sorted(names, key=lambda name: _exactness(folder / name))
    stored: dict[frozenset[tuple[str, str]], str] = {}
    variants: list[Variant] = []
    saved = 0
    for name in names:
        manifest = read_manifest(folder / name)
        model = frozenset((file.path, file.sha256) for file in manifest.files if file.path not in OWN_FILES)
        # A folder inside a bundle may be a bundle of its own, which is opened where it lies.
        shared = all("/" not in path for path, _ in model)
        owner = stored.setdefault(model, name) if shared else name
        if owner != name:
            for path, _ in model:
                saved += (folder / name / path).stat().st_size
                (folder / name / path).unlink()
        variants.append(_variant(folder, name, manifest, None if owner == name else owner))
        if (folder / name / BESIDE / MANIFEST).is_file():
            inner = f"{name}/{BESIDE}"
            variants.append(_variant(folder, inner, read_manifest(folder / inner), None))
    variants.sort(key=lambda variant: _EXACT_FIRST.index(variant.precision))
    (folder / "README.md").write_text(_readme(folder, variants, left_out), encoding="utf-8")
    first = read_manifest(folder / names[0])
    package = PackageManifest(
        encoder=first.encoder,
        model=first.model,
        variants=tuple(variants),
        left_out=tuple(left_out),
        files=(PackageFile(path="README.md", sha256=sha256_file(folder / "README.md")),),
    )
    (folder / VARIANTS).write_text(package.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Packed(manifest=package, size_bytes=size_bytes(folder), saved_bytes=saved)


def copy_bundle(bundle: Path, manifest: Manifest, out: Path) -> None:
    """Copy a verified bundle, model files included that lie in another variant of its package."""
    home = model_folder(bundle)
    for name in (MANIFEST, *(file.path for file in manifest.files)):
        source = bundle / name if (bundle / name).is_file() else home / name
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / name)


def _folders(bundle: Path) -> list[Path]:
    if not is_package(bundle):
        return [bundle]
    # What lies inside another bundle comes with it.
    names = [variant.name for variant in read_package(bundle).variants]
    return [variant_folder(bundle, name) for name in names if "/" not in name]


def _check_same_model(first: Path, known: Manifest, other: Path, manifest: Manifest) -> None:
    if known.encoder != manifest.encoder:
        fields = known.encoder.model_dump()
        differs = [name for name, value in manifest.encoder.model_dump().items() if fields.get(name) != value]
        raise UsageError(
            f"{other} is another encoder than {first}: {', '.join(differs)} differ", hint="pack bundles of one model"
        )
    if (known.model.sha256, known.model.seed) != (manifest.model.sha256, manifest.model.seed):
        raise UsageError(f"{other} was made of other weights than {first}", hint="pack bundles of one model")


def _free_name(folder: Path, manifest: Manifest) -> str:
    name = f"{manifest.target.value}-{manifest.precision.value}{'-portable' if manifest.execution.portable else ''}"
    names = (name, *(f"{name}-{number}" for number in range(2, 64)))
    free = next((name for name in names if not (folder / name).exists()), None)
    if free is None:
        raise InputError(f"too many bundles for {name}", hint="pack those that differ")
    return free


def _exactness(bundle: Path) -> int:
    return _EXACT_FIRST.index(read_manifest(bundle).precision)


def _variant(folder: Path, name: str, manifest: Manifest, model_in: str | None) -> Variant:
    return Variant(
        name=name,
        target=manifest.target,
        precision=manifest.precision,
        manifest_sha256=sha256_file(folder / name / MANIFEST),
        model_in=model_in,
    )


def _readme(folder: Path, variants: Sequence[Variant], left_out: Sequence[LeftOut]) -> str:
    encoder = read_manifest(folder / variants[0].name).encoder
    lines = [f"# {encoder.name}: one model, {len(variants)} variants", ""]
    lines += [f"**{encoder.notice}**", ""] if encoder.notice else []
    lines += ["On the workstation, once, to see which variant is best there and why:", ""]
    lines += ["```sh", "atlas-bench choose FOLDER", "```", ""]
    lines += ["Every command, and `open_bundle`, takes this folder in place of a bundle. `atlas-export verify FOLDER`"]
    lines += [
        "compares all files with their hashes.",
        "",
        "| variant | target | precision | size |",
        "|---|---|---|---:|",
    ]
    for variant in variants:
        shared = "" if variant.model_in is None else f", model files in `{variant.model_in}`"
        size = f"{size_bytes(folder / variant.name) / 1e6:.1f} MB{shared}"
        lines.append(f"| `{variant.name}` | {variant.target.value} | {variant.precision.value} | {size} |")
    if left_out:
        lines += ["", "Left out:", "", *(f"- `{one.name}`: {one.reason}" for one in left_out)]
    return "\n".join(lines) + "\n"
