"""`atlas-export pack`, and what `verify` and `inspect` say of a package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlas_edge.bench.report.rows import Rows
from atlas_edge.bench.report.terminal import print_rows
from atlas_edge.bundle import read_manifest, size_bytes
from atlas_edge.cli import console, print_json
from atlas_edge.export.packing.pack import Packed, pack_bundles
from atlas_edge.options import Output
from atlas_edge.package.manifest import PackageManifest, read_package, variant_folder
from atlas_edge.package.verify import verify_package


def run_pack(bundles: Sequence[Path], out: Path, *, overwrite: bool, output: Output) -> None:
    """Pack, and say what is inside.

    Raises:
        UsageError: No bundles, bundles of different models, or the folder is taken.
        InputError: A bundle cannot be read, or is damaged.
    """
    screen = output.screen()
    packed = pack_bundles(bundles, out, overwrite=overwrite)
    print_rows(screen, [package_rows(out, packed.manifest)])
    screen.print(packed_line(out, packed), soft_wrap=True)
    screen.print(f"next: atlas-bench choose {out}   # on the workstation", soft_wrap=True)
    if output.json:
        print_json(package_json(out, packed.manifest))


def run_verify_package(folder: Path, *, json: bool) -> None:
    """Compare every file of every variant with its hash.

    Raises:
        InputError: The package cannot be read.
        ChecksumError: Something differs.
    """
    package = verify_package(folder)
    if json:
        print_json(package.model_dump(mode="json"))
        return
    names = ", ".join(variant.name for variant in package.variants)
    print(
        f"{folder}: intact. {package.encoder.name}, {len(package.variants)} variants ({names}), "
        f"{size_bytes(folder) / 1e6:.1f} MB, made {package.created_utc}"
    )


def run_inspect_package(folder: Path, *, output: Output) -> None:
    """Say what is in a package; nothing is hashed.

    Raises:
        InputError: It cannot be read.
    """
    output.screen()
    package = read_package(folder)
    if output.json:
        print_json(package_json(folder, package))
    else:
        print_rows(console(), [package_rows(folder, package)])


def package_rows(folder: Path, package: PackageManifest) -> Rows:
    """One row a variant: what it is and what it cost where it was made."""
    headings = ("variant", "size", "model files in", "cosine median", "p1", "linear drop, 95 %")
    rows = []
    for variant in package.variants:
        found = read_manifest(variant_folder(folder, variant.name)).verification or {}
        drops = found.get("drops")
        linear = drops.get("linear") if isinstance(drops, dict) else None
        drop = [_figure(linear, name, "+.1f") for name in ("drop_pp", "low_pp", "high_pp")]
        rows.append(
            (
                variant.name,
                f"{size_bytes(folder / variant.name) / 1e6:.1f} MB",
                variant.model_in or "",
                _figure(found, "cosine_median", ".5f"),
                _figure(found, "cosine_p1", ".5f"),
                "{} pp [{}, {}]".format(*drop) if all(drop) else "",
            )
        )
    notes = [f"Left out: {one.name}: {one.reason}." for one in package.left_out]
    if package.encoder.notice:
        notes.append(f"{package.encoder.notice}.")
    return Rows(title=f"{folder.name}: {package.encoder.name}", headings=headings, rows=tuple(rows), notes=tuple(notes))


def _figure(found: Any, name: str, form: str) -> str:
    value = found.get(name) if isinstance(found, dict) else None
    return format(value, form) if isinstance(value, int | float) else ""


def packed_line(out: Path, packed: Packed) -> str:
    """Where it is, and how large."""
    saved = f"; {packed.saved_bytes / 1e6:.1f} MB lie there once for two" if packed.saved_bytes else ""
    return f"package: {out}: {len(packed.manifest.variants)} variants, {packed.size_bytes / 1e6:.1f} MB{saved}"


def package_json(folder: Path, package: PackageManifest) -> dict[str, Any]:
    """`atlas-package.json` with the size and the figures of each variant."""
    data = package.model_dump(mode="json")
    for variant in data["variants"]:
        variant["size_bytes"] = size_bytes(folder / variant["name"])
        variant["verification"] = read_manifest(variant_folder(folder, variant["name"])).verification
    return data
