"""A package against its manifest: every bundle, and nothing beside them."""

from pathlib import Path

from atlas_edge.bundle import sha256_file, verify_bundle
from atlas_edge.errors import ChecksumError, InputError
from atlas_edge.package.manifest import VARIANTS, PackageManifest, read_package, variant_folder


def verify_package(folder: Path) -> PackageManifest:
    """Compare every file of every variant with its manifest, and every manifest with the package's.

    Raises:
        InputError: No package, one that cannot be read, or a variant whose encoder or weights are others.
        ChecksumError: A file is missing or differs, or something lies there that is not listed.
    """
    package = read_package(folder)
    for variant in package.variants:
        manifest = verify_bundle(variant_folder(folder, variant.name))
        said = (package.encoder, package.model.sha256, variant.target, variant.precision)
        if said != (manifest.encoder, manifest.model.sha256, manifest.target, manifest.precision):
            raise InputError(
                f"{folder}: {variant.name} is of another model, target or precision than {VARIANTS} says",
                hint="do not use it: pack its bundles again",
            )
    for file in package.files:
        path = folder / file.path
        if not path.is_file() or sha256_file(path) != file.sha256:
            raise ChecksumError(f"{folder}: {file.path} is missing or was changed", hint="copy the package again")
    tops = {name.partition("/")[0] for name in (variant.name for variant in package.variants)}
    listed = {VARIANTS, *tops, *(file.path for file in package.files)}
    extra = sorted(path.name for path in folder.iterdir() if path.name not in listed)
    if extra:
        raise ChecksumError(f"{folder}: {extra[0]} is not in {VARIANTS}", hint="remove what was added")
    return package
