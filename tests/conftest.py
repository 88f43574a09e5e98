"""Fixtures that all tests share: a tiny model, tile folders, the shared real data, the real command line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support import ROOT, TINY_PX, RunCommand, command_environment
from warm import WarmCommands

# Files that take half a minute and more begin first, so that no process is left with one at the end.
_LONGEST = (
    "test_readme.py",
    "test_tutorial.py",
    "test_distill_sharding.py",
    "test_qad_command.py",
    "test_bench_accuracy_command.py",
    "test_edge_install.py",
    "test_measure_faults.py",
)

# Left out by `make fast` beside them, tools, and commands in processes of their own: what trains, simulates or fuzzes.
_SLOW = (
    "test_bench_interval.py",
    "test_bench_selftest.py",
    "test_distill_rotary.py",
    "test_distill_train.py",
    "test_embed_watch.py",
    "test_embed_watch_faults.py",
    "test_engine_bundle.py",
    "test_export_engine.py",
    "test_given_mask.py",
    "test_large_graphs.py",
    "test_openvino_calls.py",
    "test_packaging.py",
    "test_quantize_openvino.py",
    "test_site.py",
    "test_slide_fuzz.py",
    "test_tile_fuzz.py",
    "test_tile_streaming.py",
    "test_tissue.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)
    for item in items:
        apart = {"run_command", "warm", "wheel"} & set(getattr(item, "fixturenames", ()))
        if apart or item.path.parent.name == "tools" or item.path.name in _LONGEST + _SLOW:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real tiles, slides and teachers beside the checkout; the test is skipped where it is absent."""
    folder = Path(os.environ.get("ATLAS_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("the folder of real tiles (../shared, or ATLAS_SHARED) is not here")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight ViT (32 px, patch 8, width 64, depth 2) as a timm folder."""
    timm = pytest.importorskip("timm")
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    folder.mkdir()
    arguments = {"img_size": TINY_PX, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "reg_tokens": 1}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    # A trained model has no two equal biases; the exporter would merge them into one.
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, TINY_PX, TINY_PX],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "license": "cc0-1.0",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def linkless_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as a ZIP or a Windows clone has them: symbolic links are files that hold the target's name."""
    tree = tmp_path_factory.mktemp("linkless") / "tree"
    kept_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "bundles", "dist", "reports", "tests")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=kept_out)
    links = [path for path in tree.rglob("*") if path.is_symlink()]
    for link in links:
        target = str(link.readlink())
        link.unlink()
        link.write_text(target)
    return tree


@pytest.fixture(scope="session")
def wheel(linkless_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, made of an sdist that was made without symbolic links."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, linkless_tree]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture
def tiny_tiles() -> NDArray[np.uint8]:
    """Sixteen random tiles `(16, 32, 32, 3)`."""
    return np.random.default_rng(0).integers(0, 256, (16, TINY_PX, TINY_PX, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmCommands]:
    """Runs our commands and tools in processes of their own."""
    commands = WarmCommands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def run_command(warm: WarmCommands) -> RunCommand:
    """Run one of the commands in its own process, as a user does: `run_command("atlas-export", "doctor")`."""

    def run(
        command: str, *arguments: str | Path, cwd: Path | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        module = f"atlas_edge.{command.removeprefix('atlas-')}"
        return warm.run(["-m", module, *arguments], cwd=cwd, environment=command_environment(**environment))

    return run


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 32 px tiles, told apart by colour, in train and test folders."""
    folder = tmp_path_factory.mktemp("tiles")
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 16)):
        for label, colour in (("pink", (220, 120, 180)), ("blue", (90, 70, 160))):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                noise = random.normal(0, 30, (TINY_PX, TINY_PX, 3)) + np.array(colour)
                pixels = np.clip(noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def bundle(tiny_model: Path, tiles: Path, run_command: RunCommand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    done = run_command(
        "atlas-export", tiny_model, "--target", "openvino", "--precision", "int8", "--calib", tiles, "--out", out,
        "--max-drop", "50", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verification"]["verdict"] == "PASS"
    assert report["speed"]["encoders"].keys() == {"reference", "bundle", "PyTorch"}
    return out
