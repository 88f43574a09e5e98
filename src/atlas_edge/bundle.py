"""Bundles: the folder that is deployed. Written whole, hashed, and checked before anything in it is loaded."""

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError

from atlas_edge.encoder import Encoder
from atlas_edge.errors import ChecksumError, InputError, UsageError
from atlas_edge.manifest import READABLE, BundleFile, Manifest
from atlas_edge.package.choice import chosen_bundle
from atlas_edge.package.manifest import OWN_FILES, Place, is_package, place_in_package, read_package
from atlas_edge.package.signature import check_signature
from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.system.paths import stays_inside
from atlas_edge.system.remembered import remembered_sha256

MANIFEST = "manifest.json"
BESIDE = "fp16"
"""Folder of the FP16 bundle inside one of INT8 or FP8 for TensorRT."""


def open_bundle(
    path: str | Path,
    *,
    threads: int | None = None,
    cache_dir: Path | None = None,
    device: str | None = None,
    rehash: bool = False,
    public_key: Path | None = None,
    signature: Path | None = None,
) -> Encoder:
    """Check a bundle's hashes and load it into the runtime that it was built for.

    Of a package, the variant that is best on this machine: what was measured before, or else is measured now, which
    takes a few seconds a variant (see `package.choice`).

    A large file is hashed once, and again after anything has touched it (`remembered_sha256`).

    Args:
        path: Bundle folder, or a package of several.
        threads: Inference threads; the runtime's own choice when None.
        cache_dir: Where the runtime may keep compiled models (OpenVINO, TensorRT-RTX); nowhere when None.
        device: What it runs on, as its runtime calls it: `GPU`, `NPU`, `AUTO` (OpenVINO), `cuda:1`, `directml`,
            `openvino:gpu` (ONNX Runtime), `cuda:1` (TensorRT); the runtime's own choice when None.
        rehash: Read all files, whatever is remembered of them.
        public_key: Open it only where the holder of this key signed it; see `signature.check_signature`.
        signature: That signature; `BUNDLE.sig` beside the folder when None.

    Raises:
        UsageError: The runtime knows no such device.
        UsageError: `cache_dir` is no folder and cannot be made one.
        InputError: No manifest, or one that cannot be read.
        ChecksumError: A file is missing or differs from the manifest, or from what the holder of the key signed.
        RuntimeMissing: The runtime or its device is not here.
        GateFailed: Every variant of a package that runs here computes something else than it should.
    """
    if public_key is not None:
        check_signature(Path(path), public_key, signature)
    folder, device = chosen_bundle(path, device=device, threads=threads)
    manifest = verify_bundle(folder, rehash=rehash)
    return open_verified(folder, manifest, threads=threads, cache_dir=cache_dir, device=device)


def open_verified(
    folder: Path,
    manifest: Manifest,
    *,
    threads: int | None = None,
    cache_dir: Path | None = None,
    device: str | None = None,
) -> Encoder:
    """Load a bundle that `verify_bundle` has looked at, and whose manifest it gave; see `open_bundle`."""
    if cache_dir is not None:
        # Runtimes leave one out silently, or blame the model.
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--cache {cache_dir} cannot be a folder: {error.strerror}", hint="give another, or leave it out"
            ) from error
    home = model_folder(folder)
    return runtime_of(manifest.target).open(home, manifest, threads=threads, cache_dir=cache_dir, device=device)


def check_outside(bundle: Path, out: Path) -> None:
    """Refuse to write into a bundle, or into the package around it: they hold what their manifests list, and no more.

    Raises:
        UsageError: `out` lies in one of them.
    """
    place = place_in_package(bundle)
    home = bundle.resolve() if place is None else place.package
    if out.resolve().is_relative_to(home):
        raise UsageError(
            f"{out} lies in {home}, which holds nothing but what its manifest lists", hint="choose another --out"
        )


def verify_bundle(folder: Path, *, rehash: bool = True) -> Manifest:
    """Compare every file of a bundle with its manifest, and that with the package's where it is a variant of one.

    Args:
        folder: The bundle.
        rehash: Read all files; otherwise large ones that nothing has touched since are taken as they were.

    Returns:
        The manifest, once all hashes and sizes match and nothing else lies beside them. Hashes find what was damaged
        or mixed up on the way. They lie in the bundle itself: whoever changes a file on purpose can change them, too.

    Raises:
        InputError: No manifest, one that cannot be read, or a path that leaves the folder.
        ChecksumError: A file is missing or differs in size or SHA-256, or something lies there that is not listed: a
            file of any kind, hidden ones included, or an empty folder.
    """
    manifest = read_manifest(folder)
    place = place_in_package(folder)
    _check_place(folder, place)
    home = _home(folder, place)
    for entry in manifest.files:
        # Compared is what will be opened, whatever lies in the other folder.
        path = _inside(folder if entry.path in OWN_FILES else home, entry.path)
        if not path.is_file():
            raise ChecksumError(f"{folder}: {entry.path} is missing", hint="copy the bundle again, or export it again")
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            raise ChecksumError(
                f"{folder}: {entry.path} has {size_bytes} bytes, the manifest says {entry.size_bytes}",
                hint="copy the bundle again, or export it again",
            )
        digest = sha256_file(path) if rehash else remembered_sha256(path, sha256_file)
        if digest != entry.sha256:
            raise ChecksumError(
                f"{folder}: {entry.path} has SHA-256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…",
                hint="do not use it: copy the bundle again, or export it again",
            )
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    for name in (manifest.execution.model_file, manifest.execution.fallback_file):
        if name is not None and name not in listed:
            raise InputError(
                f"{folder}: the manifest runs {name}, which is not one of its files", hint="do not use this bundle"
            )
    elsewhere = set() if home is folder else listed - OWN_FILES - {MANIFEST}
    extra = sorted(set(_relative_files(folder)) - (listed - elsewhere))
    if extra:
        raise ChecksumError(
            f"{folder}: {extra[0]} is not in the manifest{f', or lies in {home.name}' if elsewhere else ''}",
            hint="remove what was added, or export it again",
        )
    return manifest


def model_folder(folder: Path) -> Path:
    """Where the model files of a verified bundle lie: in its folder, or in that of another variant of its package."""
    return _home(folder, place_in_package(folder))


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` without checking the files.

    Raises:
        InputError: Missing, not JSON, of another schema version, or with fields that do not fit.
    """
    path = folder / MANIFEST
    if is_package(folder):
        names = ", ".join(variant.name for variant in read_package(folder).variants)
        raise InputError(f"{folder} is a package of several bundles", hint=f"name one of its folders: {names}")
    if not path.is_file():
        raise InputError(f"{folder} is no bundle: it has no {MANIFEST}", hint="give the folder that atlas-export wrote")
    try:
        data = json.loads(path.read_bytes())
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version not in READABLE:
            raise InputError(
                f"{path} has schema version {version}, this atlas-edge reads {' and '.join(map(str, READABLE))}",
                hint="install the atlas-edge that wrote it, or export it again",
            )
        return Manifest.model_validate_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise InputError(f"{path} cannot be read: {what}", hint="export the bundle again") from error


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file below `folder`, and write `manifest.json` beside them.

    Args:
        folder: The bundle as it will be deployed, without a manifest.
        manifest: Everything but `files`, which are replaced.

    Returns:
        The manifest as written.
    """
    files = tuple(
        BundleFile(path=name, sha256=sha256_file(folder / name), size_bytes=(folder / name).stat().st_size)
        for name in _relative_files(folder)
        if name != MANIFEST
    )
    complete = manifest.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return complete


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum((folder / name).stat().st_size for name in _relative_files(folder))


def _home(folder: Path, place: Place | None) -> Path:
    return folder if place is None or place.variant.model_in is None else place.model_folder


def _check_place(folder: Path, place: Place | None) -> None:
    if place is not None and sha256_file(folder / MANIFEST) != place.variant.manifest_sha256:
        raise ChecksumError(
            f"{folder}: its {MANIFEST} is not the one that the package was made with",
            hint="do not use it: copy the package again, or pack its bundles again",
        )


def _relative_files(folder: Path) -> list[str]:
    """Everything below a folder but the folders that hold something; an empty one ends in `/`."""
    found = []
    for path in folder.rglob("*"):
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder or not any(path.iterdir()):
            found.append(path.relative_to(folder).as_posix() + "/" * is_folder)
    return sorted(found)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not stays_inside(name) or path.resolve() != folder.resolve().joinpath(*name.split("/")):
        raise InputError(f"{folder}: the manifest names {name!r}, outside the bundle", hint="do not use this bundle")
    return path
