"""A kit is packed from an index that lies in a folder, and installed where there is none."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from atlas_edge.bundle import read_manifest, sha256_file, write_manifest
from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.export import kit
from atlas_edge.export.kit import make_kit
from atlas_edge.export.packing.pack import pack_bundles
from atlas_edge.manifest import Manifest
from atlas_edge.package.verify import verify_package
from atlas_edge.spec import Precision, Target
from packages import make_bundle
from support import ROOT, RunCommand, disk_full_after

pytest.importorskip("uv", reason="pip install -e '.[kit]' to test it")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def alone(folder: Path, scratch: Path) -> dict[str, str]:
    """An environment in which packages come from a folder, and from nowhere else."""
    cache = {"UV_CACHE_DIR": str(scratch / "uv-cache"), "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    return {**cache, "UV_FIND_LINKS": str(folder), "PIP_FIND_LINKS": str(folder)}


def empty_wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any") -> None:
    """A package that holds nothing and needs nothing."""
    module = name.replace("-", "_")
    texts = {
        f"{module}/__init__.py": "",
        f"{module}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{module}-{version}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = f"{module}-{version}.dist-info/RECORD"
    lines = [f"{path},{_digest(text)},{len(text)}\n" for path, text in texts.items()]
    with zipfile.ZipFile(folder / f"{module}-{version}-{tag}.whl", "w") as file:
        for path, text in {**texts, record: "".join([*lines, f"{record},,\n"])}.items():
            file.writestr(path, text)


def _digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def index(wheel: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every package that our wheel asks for by itself or for OpenVINO; OpenVINO for two systems and in two versions."""
    folder = tmp_path_factory.mktemp("index")
    with zipfile.ZipFile(wheel) as file:
        found = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        wanted = Parser().parsestr(file.read(found).decode()).get_all("Requires-Dist")
    for line in wanted or []:
        name = re.match(r"[\w.-]+", line)
        if "extra ==" not in line and name is not None:
            empty_wheel(folder, name[0], "99.0")
    made_with = read_manifest(bundle).versions["openvino"]
    python = PYTHON.replace(".", "")
    for version in (made_with, "2999.1"):
        for system in ("win_amd64", "manylinux_2_28_x86_64"):
            empty_wheel(folder, "openvino", version, f"cp{python}-cp{python}-{system}")
    return folder


@pytest.fixture(scope="module")
def package(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "tiny-package"
    pack_bundles([bundle], folder)
    return folder


@pytest.fixture(scope="module")
def kits(bundle: Path, package: Path, wheel: Path, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in alone(index, tmp_path_factory.mktemp("packing")).items():
            patch.setenv(name, value)
        for platform in ("win_amd64", "manylinux"):
            make_kit([bundle, package], out / platform, platform=platform, python=PYTHON, extras=(), wheel=wheel)
    return out


def test_a_kit_holds_what_its_system_needs_in_the_version_of_the_bundle(kits: Path, bundle: Path) -> None:
    made_with = read_manifest(bundle).versions["openvino"]
    for platform, script, own in (("win_amd64", "install.ps1", True), ("manylinux", "install.sh", False)):
        packed = kits / platform
        names = [path.name for path in (packed / "wheels").iterdir()]
        assert [name.split("-")[1] for name in names if name.startswith("openvino")] == [made_with]
        assert any(platform in name for name in names)
        # On Linux the processor is read without it.
        assert any(name.startswith("py_cpuinfo") for name in names) is own
        assert (packed / script).is_file() and (packed / "README.md").is_file()
        assert "$" not in (packed / "README.md").read_text()
        # PowerShell 5 takes a script, and what it reads, for the country's own code page unless it is told.
        assert (packed / script).read_bytes().isascii()
        assert all("-Encoding UTF8" in line for line in script_lines(packed / script) if "Get-Content" in line)
        sums = dict(line.split("  ")[::-1] for line in (packed / "SHA256SUMS").read_text().splitlines())
        files = {path.relative_to(packed).as_posix(): path for path in packed.rglob("*") if path.is_file()}
        assert sums == {name: sha256_file(path) for name, path in files.items() if name != "SHA256SUMS"}
        contents = json.loads((packed / "kit.json").read_text())
        assert contents["bundles"] == [bundle.name, "tiny-package"] and contents["wheels"].keys() == set(names)
        verify_package(packed / "bundles" / "tiny-package")
        # Nobody's folders.
        assert str(bundle.parent) not in "".join(files[name].read_text() for name in ("requirements.txt", "kit.json"))


def script_lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="a script for Linux")
def test_a_kit_installs_without_an_index_and_a_changed_file_stops_it(kits: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHONPATH"))}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9"}
    packed = kits / "manylinux"

    def install(where: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([packed / "install.sh", where], capture_output=True, text=True, env=environment)

    done = install(tmp_path / "first")
    # The packages are empty ones: all but our own command could be installed, and that is the last step.
    assert "Traceback" in done.stderr and "openvino" not in done.stderr, done.stderr
    listed = subprocess.run([tmp_path / "first/bin/python", "-m", "pip", "list"], capture_output=True, text=True)
    assert "atlas-edge" in listed.stdout and "openvino" in listed.stdout and "99.0" in listed.stdout
    some = next((packed / "wheels").glob("numpy*"))
    whole = some.read_bytes()
    some.write_bytes(whole[:-1] + b"x")
    done = install(tmp_path / "second")
    some.write_bytes(whole)
    assert done.returncode != 0 and not (tmp_path / "second").exists() and "numpy" in done.stdout + done.stderr


def test_an_engine_gets_the_library_that_built_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constraints: list[str] = []
    asked: list[str] = []

    def run(command: list[str], _: str) -> None:
        constraints.extend(Path(command[command.index("--constraint") + 1]).read_text().splitlines())
        asked.extend(Path(command[4]).read_text().splitlines())
        asked.extend(Path(command[command.index("--overrides") + 1]).read_text().splitlines())
        Path(command[command.index("--output-file") + 1]).write_text("")

    monkeypatch.setattr(kit, "_run", run)
    made = read_manifest(bundle)
    execution = made.execution.model_copy(update={"engine_library": "tensorrt_rtx"})
    versions = {**made.versions, "tensorrt-rtx": "1.7.1.116"}
    # --target tensorrt builds with TensorRT-RTX where there is no GPU.
    engine = made.model_copy(update={"target": Target.TENSORRT, "execution": execution, "versions": versions})
    kit._lock("uv", Path("atlas_edge-0.1.0-py3-none-any.whl"), ["tensorrt-rtx"], [engine], "win_amd64", "3.12")
    assert constraints == ["tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt-rtx-cu13-libs==1.7.1.116"]
    # Its own distribution is a source, which a kit cannot hold: what it stands for is asked for in its place.
    stood_for = ["tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs", "tensorrt-rtx; sys_platform == 'never'"]
    assert asked[1:] == stood_for


def test_a_package_brings_the_runtimes_of_what_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_bundle(tmp_path / "engine", Target.TENSORRT, Precision.FP16, model=b"engine")
    manifest = read_manifest(engine)
    execution = manifest.execution.model_copy(update={"engine_library": "tensorrt"})
    built = {"execution": execution, "versions": {"platform": "Linux x86_64"}}
    write_manifest(engine, manifest.model_copy(update=built))
    package = tmp_path / "package"
    pack_bundles([make_bundle(tmp_path / "a", Target.OPENVINO), make_bundle(tmp_path / "b"), engine], package)
    wanted: dict[str, object] = {}

    def lock(_: str, own: Path, extras: list[str], manifests: list[Manifest], platform: str, __: str) -> str:
        wanted[platform] = extras
        raise InputError("far enough")

    monkeypatch.setattr(kit, "_lock", lock)
    monkeypatch.setattr(kit, "_own_wheel", lambda *_: tmp_path)
    monkeypatch.setattr(kit, "_check_extras", lambda *_: None)
    for platform in ("win_amd64", "manylinux"):
        with pytest.raises(InputError, match="far enough"):
            make_kit([package], tmp_path / "kit", platform=platform, python=PYTHON, extras=("slides",))
    assert wanted == {
        "win_amd64": ["onnx", "openvino", "slides"],
        "manylinux": ["onnx", "openvino", "slides", "tensorrt"],
    }
    with pytest.raises(UsageError, match="nothing in engine runs on win_amd64"):
        make_kit([engine], tmp_path / "kit", platform="win_amd64", python=PYTHON)


def test_our_wheel_is_built_of_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def build(command: list[str], _: str) -> None:
        seen.append(Path(command[-1]))
        names = {path.name for path in seen[0].iterdir()}
        assert {"pyproject.toml", "setup.py", "src", "export"} <= names and not {"build", ".git", ".venv"} & names
        (tmp_path / "atlas_edge-0.1.0-py3-none-any.whl").touch()

    monkeypatch.setattr(kit, "_run", build)
    assert kit._own_wheel(None, tmp_path).name.startswith("atlas_edge")
    assert seen[0] != ROOT and not seen[0].exists()


def test_what_cannot_be_packed_is_said(
    bundle: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    (tmp_path / "empty").mkdir()
    for name, value in alone(tmp_path / "empty", tmp_path / "scratch").items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out" / "kit"
    with pytest.raises(InputError, match="cannot find wheels for win_amd64"):
        make_kit([bundle], out, platform="win_amd64", python=PYTHON, wheel=wheel)
    with pytest.raises(UsageError, match="--extra nonsense: atlas-edge has no such extra"):
        make_kit([bundle], out, platform="win_amd64", python=PYTHON, extras=("nonsense",), wheel=wheel)
    largest = max(path.stat().st_size for path in bundle.iterdir() if path.is_file())
    with disk_full_after(largest - 1), pytest.raises(OSError, match=r"^\[Errno \d+\] [^\[]*$"):
        make_kit([bundle], out, platform="win_amd64", python=PYTHON, wheel=wheel)
    with pytest.raises(UsageError, match="same folder name"):
        make_kit([bundle, bundle], out, platform="win_amd64", python=PYTHON, wheel=wheel)
    with pytest.raises(UsageError, match="expected a version"):
        make_kit([bundle], out, platform="win_amd64", python="three", wheel=wheel)
    with pytest.raises(UsageError, match="no wheel"):
        make_kit([bundle], out, platform="win_amd64", python=PYTHON, wheel=tmp_path / "x.whl")
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(RuntimeMissing, match="uv"):
        make_kit([bundle], out, platform="win_amd64", python=PYTHON, wheel=wheel)
    assert not list(out.parent.iterdir())
    done = run_command("atlas-export", "kit", tmp_path / "none", "--platform", "win_amd64", "--out", out)
    assert done.returncode == 5 and "is no bundle" in done.stderr
    done = run_command("atlas-export", "kit", "--platform", "win_amd64", "--out", out)
    assert done.returncode == 2 and "no bundle to pack" in done.stderr
