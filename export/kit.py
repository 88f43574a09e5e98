"""A kit: bundles with all that a workstation without internet needs to run them, installed by one command."""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from email.parser import Parser
from pathlib import Path
from string import Template
from typing import Literal

import atlas_edge
from atlas_edge.bundle import MANIFEST, read_manifest, sha256_file, size_bytes, verify_bundle
from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.manifest import Manifest
from atlas_edge.package.manifest import is_package
from atlas_edge.package.verify import verify_package
from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.runtimes.tensorrt_fit import FALLBACK_FOLDER
from atlas_edge.runtimes.tensorrt_library import LIBRARIES
from atlas_edge.system.atomic import atomic_folder, check_vacant

Platform = Literal["win_amd64", "manylinux"]

CONTENTS, SUMS, REQUIREMENTS = "kit.json", "SHA256SUMS", "requirements.txt"
# What holds a runtime whose own distribution only stands for it, and is a source: kits take wheels alone.
_PARTS = {"tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")}
_NO_SOURCES = (".*", "*.egg-info", "__pycache__", "build", "bundles", "dist", "docs", "reports", "tests")
_TEMPLATES = Path(__file__).parent / "kit_files"
# What uv calls a system, and the tags of wheels that run there.
_SYSTEMS: dict[Platform, tuple[str, tuple[str, ...]]] = {
    "win_amd64": ("x86_64-pc-windows-msvc", ("win_amd64",)),
    "manylinux": (
        "x86_64-manylinux_2_28",
        ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What was packed; `kit.json` says the same.

    Attributes:
        platform: Where it installs.
        python: Version of Python that must be there, such as `3.12`.
        extras: Extras of atlas-edge.
        bundles: Folder names below `bundles`.
        wheels: File name -> SHA-256.
        size_bytes: Of all files.
    """

    platform: Platform
    python: str
    extras: tuple[str, ...]
    bundles: tuple[str, ...]
    wheels: dict[str, str]
    size_bytes: int


def make_kit(
    bundles: Sequence[Path],
    out: Path,
    *,
    platform: Platform,
    python: str,
    extras: Sequence[str] = ("slides",),
    wheel: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Kit:
    """Gather bundles, our wheel and those that it needs there, locked by hash, with scripts that install them.

    The runtime has the version that the bundles were made and judged with; other packages are the newest that fit.

    Args:
        bundles: Bundle folders, and packages, whose every variant that runs there gets its runtime.
        out: Folder to write.
        platform: Windows or Linux, on x86-64.
        python: Version of Python on the workstation.
        extras: Extras beside those of the bundles' runtimes.
        wheel: Our own wheel; built from this checkout when None.
        overwrite: Replace a kit that is there.
        progress: Told what is being done.

    Raises:
        UsageError: Two bundles of one name, nothing that runs on the platform, a version of Python that is none, or no
            wheel and no checkout.
        InputError: A bundle is damaged, or the wheels for it cannot be had.
        RuntimeMissing: uv is not installed.
    """
    check_vacant(out, marks=(CONTENTS,), overwrite=overwrite)
    if not python.replace(".", "", 1).isdigit() or python.count(".") != 1:
        raise UsageError(f"--python {python}: expected a version such as 3.12", hint="as the workstation has it")
    names = [bundle.resolve().name for bundle in bundles]
    if len(set(names)) < len(names):
        raise UsageError("two bundles have the same folder name", hint="rename one of them")
    inside = {folder: manifest for bundle in bundles for folder, manifest in _verified(bundle).items()}
    there = {folder: manifest for folder, manifest in inside.items() if _runs_on(manifest, platform)}
    if not there:
        raise UsageError(f"nothing in {', '.join(names)} runs on {platform}", hint="pack a bundle for its processor")
    wanted = sorted({*extras, *(extra for pair in there.items() for extra in _extras(*pair))})
    uv = _uv()
    with atomic_folder(out, marks=(CONTENTS,), overwrite=overwrite) as folder:
        for bundle, name in zip(bundles, names, strict=True):
            _copy(bundle, folder / "bundles" / name)
        wheels = folder / "wheels"
        wheels.mkdir()
        progress("our own wheel")
        own = _own_wheel(wheel, wheels)
        _check_extras(own, wanted)
        progress("which wheels it needs there")
        locked = _lock(uv, own, wanted, list(there.values()), platform, python)
        progress("fetching them")
        _fetch(locked, wheels, platform, python)
        _write_requirements(folder, locked, own, wanted)
        kit = Kit(
            platform=platform,
            python=python,
            extras=tuple(wanted),
            bundles=tuple(names),
            wheels={path.name: sha256_file(path) for path in sorted(wheels.iterdir())},
            size_bytes=size_bytes(folder),
        )
        _write_rest(folder, kit, version=own.name.split("-")[1])
    return kit


def _verified(bundle: Path) -> dict[Path, Manifest]:
    """The manifest of a bundle, or of every variant of a package, by its folder."""
    if not is_package(bundle):
        return {bundle: verify_bundle(bundle)}
    folders = [bundle / variant.name for variant in verify_package(bundle).variants]
    return {folder: read_manifest(folder) for folder in folders}


def _runs_on(manifest: Manifest, platform: Platform) -> bool:
    library = LIBRARIES.get(manifest.execution.engine_library or "")
    built = manifest.versions.get("platform", "").partition(" ")[0]
    system = "Windows" if platform == "win_amd64" else "Linux"
    return library is None or bool(library.engine_reads_on) or built in ("", system)


def _copy(bundle: Path, target: Path) -> None:
    # One by one: of a tree that cannot be copied, the library tells every file in one message.
    for path in sorted(bundle.rglob("*")):
        if path.is_file():
            copied = target / path.relative_to(bundle)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)


def _check_extras(own: Path, extras: Sequence[str]) -> None:
    with zipfile.ZipFile(own) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        known = Parser().parsestr(file.read(name).decode()).get_all("Provides-Extra") or []
    unknown = sorted(set(extras) - set(known))
    if unknown:
        raise UsageError(f"--extra {unknown[0]}: atlas-edge has no such extra", hint=f"it has {', '.join(known)}")


def _extras(bundle: Path, manifest: Manifest) -> list[str]:
    library = manifest.execution.engine_library
    own = runtime_of(manifest.target).extra if library is None else library.replace("_", "-")
    # The graph beside an engine runs where its GPU fails.
    return [own, *(["onnx"] if (bundle / FALLBACK_FOLDER / MANIFEST).is_file() else [])]


def _uv() -> str:
    try:
        from uv import find_uv_bin
    except ImportError as error:
        missing = "uv, which finds wheels for another system, is not installed"
        raise RuntimeMissing(missing, hint="pip install 'atlas-edge[kit]'") from error
    return str(find_uv_bin())


def _own_wheel(given: Path | None, wheels: Path) -> Path:
    """Our wheel, put into `wheels`."""
    if given is not None:
        if given.suffix != ".whl" or not given.is_file():
            raise UsageError(f"--wheel {given}: no wheel", hint="give atlas_edge-VERSION-py3-none-any.whl")
        return Path(shutil.copy(given, wheels))
    root = Path(atlas_edge.__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        raise UsageError("this atlas-edge was installed from a wheel", hint="give that wheel: --wheel FILE")
    with tempfile.TemporaryDirectory() as scratch:
        # Built in place, it would leave its steps in the checkout, and take in what an earlier build left there.
        copy = Path(scratch) / "sources"
        shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns(*_NO_SOURCES))
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(wheels), str(copy)]
        _run(command, "build our wheel")
    return next(wheels.glob("*.whl"))


def _lock(
    uv: str, own: Path, extras: Sequence[str], manifests: Sequence[Manifest], platform: Platform, python: str
) -> str:
    """Requirements of our wheel there, each with its version and hashes, our own line left out."""
    libraries = [manifest.execution.engine_library or runtime_of(manifest.target).module for manifest in manifests]
    modules = {library.replace("_", "-") for library in libraries}
    known = {
        part: version
        for manifest in manifests
        for name, version in manifest.versions.items()
        if name in modules
        for part in _PARTS.get(name, (name,))
    }
    with tempfile.TemporaryDirectory() as scratch:
        names = ("asked.in", "constraints.txt", "overrides.txt", "locked.txt")
        asked, constraints, overrides, found = (Path(scratch) / name for name in names)
        stood_for = [name for name in _PARTS if name in extras]
        lines = [f"atlas-edge[{','.join(extras)}] @ {own.resolve().as_uri()}"]
        lines += [part for name in stood_for for part in _PARTS[name]]
        asked.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in known.items()), encoding="utf-8")
        overrides.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in stood_for), encoding="utf-8")
        command = [uv, "pip", "compile", "--quiet", str(asked), "--output-file", str(found)]
        command += ["--constraint", str(constraints), "--overrides", str(overrides)]
        command += ["--generate-hashes", "--no-annotate", "--no-header"]
        command += ["--only-binary", ":all:", "--python-version", python, "--python-platform", _SYSTEMS[platform][0]]
        _run(command, f"find wheels for {platform} and Python {python}")
        lines = found.read_text(encoding="utf-8").splitlines()
    kept: list[str] = []
    for line in lines:
        # A continued line belongs to the requirement before it.
        if line.startswith("    "):
            kept[-1] += f"\n{line}"
        elif line.strip():
            kept.append(line)
    return "\n".join(line for line in kept if not line.startswith("atlas-edge ")) + "\n"


def _fetch(locked: str, wheels: Path, platform: Platform, python: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / REQUIREMENTS
        requirements.write_text(locked, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--requirement", str(requirements), "--dest", str(wheels), "--only-binary", ":all:"]
        command += ["--implementation", "cp", "--python-version", python]
        for tag in _SYSTEMS[platform][1]:
            command += ["--platform", tag]
        _run(command, "fetch the wheels")


def _write_requirements(folder: Path, locked: str, own: Path, extras: Sequence[str]) -> None:
    version = own.name.split("-")[1]
    line = f"atlas-edge[{','.join(extras)}]=={version} \\\n    --hash=sha256:{sha256_file(own)}\n"
    (folder / REQUIREMENTS).write_text(line + locked, encoding="utf-8")


def _write_rest(folder: Path, kit: Kit, *, version: str) -> None:
    words = {
        "python": kit.python,
        "first": kit.bundles[0],
        "bundles": "\n".join(f"- `bundles/{name}`" for name in kit.bundles),
        "size": f"{kit.size_bytes / 1e6:.0f}",
        "wheels": str(len(kit.wheels)),
        "version": version,
    }
    windows = kit.platform == "win_amd64"
    for name in ("README-windows.md", "install.ps1") if windows else ("README-linux.md", "install.sh"):
        text = Template((_TEMPLATES / name).read_text(encoding="utf-8")).substitute(words)
        target = folder / ("README.md" if name.startswith("README") else name)
        target.write_text(text, encoding="utf-8", newline="\r\n" if windows else "\n")
        if name.endswith(".sh"):
            target.chmod(0o755)
    (folder / CONTENTS).write_text(json.dumps(asdict(kit), indent=2) + "\n", encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8", newline="\n")


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        telling = [line for line in said if "error" in line.lower() or "×" in line] or said[-1:]
        reason = telling[0] if telling else f"exit code {done.returncode}"
        raise InputError(f"cannot {what}: {reason}", hint="is a package index reachable, and the version right?")
