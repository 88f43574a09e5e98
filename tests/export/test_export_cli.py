"""atlas-export through its real command line: the main job, exit codes, and what is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import ROOT, TINY_PX, RunCommand, timm_embedding, write_timm_folder

pytest.importorskip("torch")

from atlas_edge import open_bundle
from atlas_edge.bundle import verify_bundle
from atlas_edge.runtimes.int8_sums import int8_sums_are_exact
from atlas_edge.spec import Target
from atlas_edge.system.atomic import clear_leftovers


def test_bundle_is_complete_and_runs(bundle: Path, run_command: RunCommand) -> None:
    names = {path.name for path in bundle.iterdir()}
    assert names == {
        "README.md", "manifest.json", "model.bin", "model.xml", "report.html", "report.json", "report.md",
        "selftest.safetensors",
    }  # fmt: skip
    encoder = open_bundle(bundle)
    tiles = np.random.default_rng(1).integers(0, 256, (3, TINY_PX, TINY_PX, 3), dtype=np.uint8)
    assert encoder.encode(tiles).shape == (3, 64)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["calibration"]["tiles"] == 48
    assert manifest["evaluation"]["tiles"] == 32
    assert manifest["quantization"]["coverage"]["Convolution"] == "1 of 1"
    assert str(Path.home()) not in (bundle / "README.md").read_text()
    done = run_command("atlas-export", "verify", bundle)
    assert done.returncode == 0
    assert "intact" in done.stdout
    assert ("LP_TRANSFORMS_MODE" in done.stderr) == (not int8_sums_are_exact())
    card = (bundle / "README.md").read_text()
    assert "licence of the weights | cc0-1.0" in card
    for told in (card, manifest["notice"], (bundle / "model.xml").read_text()):
        assert "WRONG there" in told and "atlas_edge.open_bundle" in told
    assert "- Quantized layer by layer, recipe openvino-int8." in card
    assert "- Quantized layer by layer, recipe openvino-int8." in (bundle / "report.md").read_text()
    assert json.loads((bundle / "report.json").read_text())["quantization"]["path"] == "layer by layer"
    # The page to sign names the figures beside it, and asks for nothing.
    page = (bundle / "report.html").read_text()
    assert sha256((bundle / "report.json").read_bytes()).hexdigest() in page and "Sign-off" in page
    assert "Gate: <span" in page and "WRONG there" in page and "Not a medical device" in page
    assert "://" not in page and str(Path.home()) not in page


def test_what_was_taken_for_granted_and_what_departs_from_the_model_are_said(
    tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    """And another tile size than the model's: the bundle equals timm's network of that size."""
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "reg_tokens": 2}
    model = write_timm_folder(tmp_path / "model", "vit_tiny_patch16_224", cfg={"std": None}, **arguments)
    done = run_command(
        "atlas-export", model, "--target", "onnx", "--precision", "fp32", "--calib", tiles, "--out", tmp_path / "b",
        "--pooling", "cls+mean", "--tile-px", "48", "--tile-fit", "resize", "--no-speed",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert (manifest["encoder"]["tile_px"], manifest["encoder"]["embed_dim"]) == (48, 96)
    assert (manifest["encoder"]["pooling"], manifest["encoder"]["own_pooling"]) == ("cls+mean", "cls")
    for where in (done.stderr, *((tmp_path / "b" / name).read_text() for name in ("report.md", "README.md"))):
        said = " ".join(where.split())
        assert "states no std: ImageNet's were taken" in said
        assert "Pooling cls+mean was asked for; the model's own is cls" in said
    large = np.random.default_rng(1).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    cls = open_bundle(tmp_path / "b").encode(large)[:, :48]
    np.testing.assert_allclose(cls, timm_embedding(model, large, img_size=48), atol=1e-4)


def test_tampered_bundle_is_not_opened(bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    data = bytearray((copy / "model.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.bin").write_bytes(data)
    for command in (("atlas-export", "verify", copy), ("atlas-bench", "speed", copy)):
        done = run_command(*command)
        assert done.returncode == 5
        assert "model.bin has SHA-256" in done.stderr
        assert "Traceback" not in done.stderr


def test_missed_budget_exits_3_and_keeps_the_files(
    tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    out = tmp_path / "bundle"
    flat = tmp_path / "labels"  # labels at random: the drop's interval cannot be narrower than this budget
    random = np.random.default_rng(3)
    for split in ("train", "test"):
        for label in ("a", "b"):
            (flat / split / label).mkdir(parents=True)
            for number in range(12):
                pixels = random.integers(0, 256, (TINY_PX, TINY_PX, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(flat / split / label / f"{number}.png")
    done = run_command(
        "atlas-export", tiny_model, "--target", "onnx", "--precision", "int8", "--calib", flat, "--out", out,
        "--max-drop", "0", "--no-speed",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "budget 0 pp" in done.stderr
    assert run_command("atlas-export", "verify", out).returncode == 0


@pytest.mark.parametrize(
    ("target", "precision"), [("onnx", "fp16"), ("onnx", "bf16"), ("openvino", "bf16"), ("openvino", "fp16")]
)
def test_other_precisions(
    target: str, precision: str, tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    out = tmp_path / "bundle"
    done = run_command(
        "atlas-export", tiny_model, "--target", target, "--precision", precision,
        "--calib", tiles, "--out", out, "--no-speed", "--batch", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["execution"]["batch"] == 4
    assert manifest["verification"]["cosine_p1"] > 0.999
    assert open_bundle(out).encode(np.zeros((5, TINY_PX, TINY_PX, 3), dtype=np.uint8)).shape == (5, 64)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engine_is_built_without_a_gpu(
    precision: str, tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "bundle"
    done = run_command(
        "atlas-export", tiny_model, "--target", "tensorrt-rtx", "--precision", precision,
        "--calib", tiles, "--out", out, "--no-speed",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not run" in done.stderr
    assert "cudaError" not in done.stderr
    assert (out / "model.engine").stat().st_size > 10_000
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["execution"]["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert manifest["verification"]["deployed_file_was_run"] is False
    if shutil.which("nvidia-smi") is None:
        opened = run_command("atlas-bench", "speed", out)
        assert opened.returncode == 4
        assert "onnx" in opened.stderr


def test_help_is_quick_to_import_and_loads_no_torch() -> None:
    code = (
        "import sys; from atlas_edge.export.cli import app\n"
        "app(['--help'], exit_on_error=False, result_action='return_value')\n"
        "assert not {'torch', 'numpy', 'openvino', 'pydantic'} & set(sys.modules), sorted(sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--target", "openvino"], 2, "--precision"),
        (["--target", "cuda", "--precision", "int8"], 2, "cuda"),
        (["--target", "openvino", "--precision", "int4"], 2, "int4"),
        (["--target", "openvino", "--precision", "fp8"], 2, "no FP8"),
        (["--target", "openvino", "--precision", "int8", "--colour", "red"], 2, "--colour"),
        (["--target", "openvino", "--precision", "int8", "--batch", "many"], 2, "--batch"),
        (["--target", "openvino", "--precision", "int8", "--batch", "1,2,3"], 2, "TensorRT"),
        (["--target", "openvino", "--precision", "int8", "--calib-limit", "0"], 2, "--calib-limit"),
        (["atlas9", "--target", "openvino", "--precision", "int8"], 2, "no model is called 'atlas9'"),
        (["--target", "openvino", "--precision", "int8", "--calib", "nowhere"], 5, "nowhere does not exist"),
        (["verify", "nowhere"], 5, "is no bundle"),
        (["rebuild", "nowhere"], 5, "is no bundle"),
    ],
)
def test_mistakes(arguments: list[str], exit_code: int, message: str, tmp_path: Path, run_command: RunCommand) -> None:
    done = run_command("atlas-export", *arguments, cwd=tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert message in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "bundles"] * (tmp_path / "bundles").exists()


def test_corrupt_tile_is_named_and_nothing_is_written(
    tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    copy = tmp_path / "tiles"
    shutil.copytree(tiles, copy)
    broken = copy / "test" / "blue" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    out = tmp_path / "out" / "bundle"
    done = run_command(
        "atlas-export", tiny_model, "--target", "openvino", "--precision", "fp32", "--calib", copy, "--out", out
    )
    assert done.returncode == 5
    assert "3.png" in done.stderr
    assert list(out.parent.iterdir()) == []


def test_tiles_of_another_size(tiny_model: Path, tmp_path: Path, run_command: RunCommand) -> None:
    for number in range(8):
        Image.fromarray(np.full((40, 40, 3), 30 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    arguments = ("--target", "onnx", "--precision", "fp32", "--calib", tmp_path, "--no-speed", "--out")
    done = run_command("atlas-export", tiny_model, *arguments, tmp_path / "a")
    assert done.returncode == 5
    assert "--tile-fit crop" in done.stderr


def test_existing_folder_is_kept(tiny_model: Path, tmp_path: Path, run_command: RunCommand) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    done = run_command(
        "atlas-export", tiny_model, "--target", "onnx", "--precision", "fp32", "--out", tmp_path / "mine"
    )
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_dry_run_writes_nothing(tiny_model: Path, tiles: Path, tmp_path: Path, run_command: RunCommand) -> None:
    done = run_command(
        "atlas-export", tiny_model, "--target", "openvino", "--precision", "int8", "--calib", tiles,
        "--dry-run", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"]["precision"] == "int8"
    assert list(tmp_path.iterdir()) == []


def test_values_come_from_environment_and_file(tiny_model: Path, tmp_path: Path, run_command: RunCommand) -> None:
    (tmp_path / "atlas.toml").write_text('[export]\ntarget = "onnx"\nprecision = "fp32"\nseed = 3\n')
    done = run_command("atlas-export", tiny_model, "--dry-run", "--json", cwd=tmp_path, ATLAS_EXPORT_SEED="5")
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)["config"]
    assert (config["target"], config["seed"]) == ("onnx", 5)


# Kills itself at the n-th rename: of a new bundle there is one, of a replaced one two.
KILLED = """
import os, signal, sys
from hashlib import sha256
from pathlib import Path
from atlas_edge.cli import run_app
from atlas_edge.export.cli import app

genuine, left = Path.rename, [int(sys.argv[1])]

def rename(self, target):
    left[0] -= ".partial-" in self.name or ".replaced-" in Path(target).name
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return genuine(self, target)

Path.rename = rename
raise SystemExit(run_app(app, sys.argv[2:]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_kill_9_at_the_renames_leaves_no_half_bundle_and_loses_no_whole_one(
    bundle: Path, tiny_model: Path, tiles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    options = [
        tiny_model, "--target", "onnx", "--precision", "fp32", "--calib", tiles, "--out", out, "--no-speed",
        "--overwrite", "--calib-limit", "8", "--fit-limit", "8", "--eval-limit", "8",
    ]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def export(renames: int) -> int:
        command = [sys.executable, "-c", KILLED, str(renames), *map(str, options)]
        return subprocess.run(command, env=environ, stderr=subprocess.DEVNULL).returncode

    assert export(0) == -signal.SIGKILL
    assert not out.exists()
    shutil.copytree(bundle, out)
    assert export(1) == -signal.SIGKILL  # the old bundle is aside, the new one not in place
    assert not out.exists()
    clear_leftovers(out)
    assert verify_bundle(out) == verify_bundle(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert export(99) == 0
    assert verify_bundle(out).target is Target.ONNX
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
