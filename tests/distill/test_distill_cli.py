# ruff: noqa: E501 - tables of command lines read best unwrapped
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from atlas_edge.cli import run_app
from atlas_edge.distill.cli import app
from atlas_edge.distill.data.tileset import open_training_tiles
from atlas_edge.models.load import load_encoder
from support import disk_full_after

RunCommand = Callable[..., object]


def test_cache_train_and_evaluate_from_the_command_line(
    run_command: RunCommand, tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    cached = run_command(
        "atlas-distill", "cache", tiny_model, tile_folder, "--out", tmp_path / "cache", "--views", "2", "--tile-px", "32", "--grid", "4", "--json"
    )  # fmt: skip
    assert cached.returncode == 0, cached.stderr
    assert json.loads(cached.stdout)["tiles"] == 24
    trained = run_command(
        "atlas-distill", tmp_path / "cache", "--tiles", tile_folder, "--student", tiny_student, "--out", tmp_path / "student",
        "--steps", "12", "--batch", "8", "--threads", "1", "--json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["teachers"][0]["name"] == "tiny-vit"
    scans = []
    for number in range(2):
        scans.append(tmp_path / f"scan{number}.png")
        Image.effect_noise((64, 64), 40).convert("RGB").save(scans[-1])
    judged = run_command(
        "atlas-distill", "evaluate", tiny_model, tmp_path / "student", "--fit", tile_folder, "--stress-limit", "8", "--json", "--threads", "1",
        "--scans", *scans,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    figures = json.loads(judged.stdout)
    assert {entry["method"] for entry in figures["retention"]} == {"linear", "knn"}
    # Half of the tiles fit the probes and half are tested: dark from light is told by any encoder.
    assert figures["fit_tiles"] == figures["tiles"] == 12
    assert all(entry["student_score"] > 0.8 for entry in figures["retention"])
    assert len(figures["movements"]) == 8
    assert figures["scanners"]["crops"] == 5
    assert figures["robustness"] is None  # neither centres nor scanners are named


def test_a_fitted_student_is_an_encoder_with_a_card_of_its_own(
    run_command: RunCommand, tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    teacher, out = tmp_path / "virchow2", tmp_path / "fitted"
    shutil.copytree(tiny_model, teacher)
    fitted = run_command(
        "atlas-distill", "fit", teacher, tile_folder, "--out", out, "--student", tiny_student, "--views", "2", "--init-tiles", "40",
        "--half", "--threads", "1", "--json",
    )  # fmt: skip
    assert fitted.returncode == 0, fitted.stderr
    report = json.loads(fitted.stdout)
    assert report["views"] == 40
    assert report["teacher"]["name"] == "virchow2"
    assert "virchow2" in fitted.stderr and "virchow2" in report["warnings"][0]
    kept = json.loads((out / "report.json").read_text())
    assert kept["cls_cosine"] == report["cls_cosine"]
    assert kept["config"]["init_tiles"] == 40 and "steps" not in kept["config"]
    # A student is handed on: where it was made is not.
    assert kept["config"]["teachers"] == ["virchow2"] and kept["student"] == "fitted"
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in out.iterdir())
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "in closed form on 40 views" in card and "whitening 0.5" in card
    assert f"teacher's {report['cls_cosine']:.4f}" in card
    assert report["warnings"][0] in card
    assert all(value.dtype == torch.float16 for value in load_file(out / "model.safetensors").values())
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    encoder = load_encoder(str(out))
    assert np.isfinite(encoder.encode(np.full((2, 32, 32, 3), 128, np.uint8))).all()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_a_student_names_no_tile_set_unless_paths_are_kept(
    trained: bool,
    keep: bool,
    tiny_model: Path,
    tile_folder: Path,
    held_out_folder: Path,
    tiny_student: Path,
    tmp_path: Path,
) -> None:
    tiles, judging = tmp_path / "patient-4711", tmp_path / "patient-4712"
    shutil.copytree(tile_folder, tiles)
    shutil.copytree(held_out_folder, judging)
    (tiles / "README.md").write_text("Licence: CC0-1.0\n")
    arguments = [
        "--out",
        tmp_path / "student",
        "--student",
        tiny_student,
        "--views",
        "2",
        "--threads",
        "1",
        *["--keep-paths"] * keep,
    ]
    fit = ["fit", tiny_model, tiles, "--init-tiles", "40"]
    train = [tiny_model, "--tiles", tiles, "--steps", "1", "--batch", "4", "--held-out", judging]
    assert run_app(app, [str(part) for part in (*(train if trained else fit), *arguments)]) == 0
    report, card = ((tmp_path / "student" / name).read_text(encoding="utf-8") for name in ("report.json", "README.md"))
    assert ("patient-4711" in report) == ("patient-4711" in card) == keep
    assert ("patient-4712" in report) == (keep and trained)
    assert "CC0-1.0" in card
    found = json.loads(report)
    digest = open_training_tiles([str(tiles)]).provenance()[0].fingerprint
    assert found["tiles"][0]["fingerprint"] == digest and found["tiles"][0]["licence"] == "CC0-1.0"
    assert found["config"]["tiles"] == [str(tiles) if keep else "…"]
    if not keep:
        assert found["tiles"][0]["name"] == f"class folders {digest[:8]}" in card
        assert found["config"].get("held_out", "…") == "…"


def test_whitening_reaches_the_weights(
    run_command: RunCommand, tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    scales = {}
    for power in ("0", "1"):
        done = run_command(
            "atlas-distill", "fit", tiny_model, tile_folder, "--out", tmp_path / power, "--student", tiny_student, "--init-tiles", "40",
            "--whitening", power, "--threads", "1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        scales[power] = load_file(tmp_path / power / "model.safetensors")["norm.weight"]
    assert scales["0"].std() == 0
    assert scales["1"].max() > 2 * scales["1"].min()


def test_a_foreign_licence_cannot_break_a_card_s_front_matter(
    run_command: RunCommand, tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "fitted"
    shutil.copytree(tiny_model, teacher)
    config = json.loads((teacher / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "mit\nbase_model: other\n---"
    (teacher / "config.json").write_text(json.dumps(config))
    done = run_command(
        "atlas-distill", "fit", teacher, tile_folder, "--out", out, "--student", tiny_student, "--init-tiles", "40", "--threads", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = (out / "README.md").read_text(encoding="utf-8")
    front = ModelCard(card).data.to_dict()
    assert set(front) == {"license", "library_name", "pipeline_tag", "tags"}


@pytest.mark.skipif(os.name == "nt", reason="a limit on file sizes is POSIX")
def test_a_full_disk_leaves_no_fitted_student(
    run_command: RunCommand, tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    # Writing fails in the middle of the weights.
    with disk_full_after(20_000):
        done = run_command(
            "atlas-distill", "fit", tiny_model, tile_folder, "--out", tmp_path / "fitted", "--student", tiny_student,
            "--views", "2", "--init-tiles", "40", "--threads", "1",
        )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "check free disk space" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no-such-teacher", "--tiles", "synthetic:8", "--out", "x", "--student", "STUDENT", "--batch", "4"], 2, "no-such-teacher"),
        (["TEACHER", "--tiles", "no/such/tiles", "--out", "x"], 5, "does not exist"),
        (["TEACHER", "--tiles", "TILES", "--out", "x", "--student", "no-such-student"], 2, "no student is called"),
        (["TEACHER", "--tiles", "TILES", "--out", "x", "--student", "resnet18"], 2, "no CLS and patch tokens"),
        (["TEACHER", "--tiles", "TILES", "--out", "x", "--steps", "0"], 2, "--steps is 0"),
        (["TEACHER", "--tiles", "TILES", "--out", "x", "--student", "STUDENT", "--batch", "4000"], 2, "lower --batch"),
        (["--tiles", "TILES", "--out", "x"], 2, "--teachers"),
        (["TEACHER", "--tiles", "TILES", "--out", "x", "--student", "STUDENT", "--matryoshka", "0"], 2, "--matryoshka is 0"),
        (["TEACHER", "--tiles", "TILES", "--out", "x", "--student", "STUDENT", "--matryoshka", "16", "33"], 2, "more than the 32 dimensions"),
        (["TEACHER", "--tiles", "TILES", "--out", "x", "--student", "vit_medium_patch16_reg4_gap_256"], 2, "no CLS and patch tokens"),
        (["TEACHER", "--tiles", "TILES", "--out", "x", "--student", "STUDENT", "--batch", "4", "--held-out", "TILES"], 5, "in both the training tiles and the held-out tiles"),
        (["evaluate", "TEACHER", "TEACHER", "--fit", "TILES", "--tiles", "TILES/."], 5, "in both the fitted tiles and the tested tiles"),
        (["cache", "TEACHER", "--out", "x"], 2, "at least one tile set"),
        (["fit", "TEACHER", "TILES", "--out", "IN_A_FILE", "--student", "STUDENT"], 5, "config.json"),
        (["fit", "TEACHER", "TILES", "--out", "x", "--whitening", "2"], 2, "--whitening is 2"),
        (["evaluate", "TEACHER", "TEACHER", "--fit", "TILES", "--scans", "missing.png"], 5, "at least two"),
        (["evaluate", "TEACHER", "TEACHER", "--fit", "TILES", "--scans", "missing.png", "TILES/."], 5, "missing.png cannot be read"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_remedy(
    arguments: list[str],
    code: int,
    said: str,
    tiny_model: Path,
    tile_folder: Path,
    tiny_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"TEACHER": str(tiny_model), "TILES": str(tile_folder), "STUDENT": str(tiny_student)}
    names["TILES/."] = f"{tile_folder}/../{tile_folder.name}"
    names["IN_A_FILE"] = str(tiny_student / "config.json" / "x")
    monkeypatch.chdir(tmp_path)
    assert run_app(app, [names.get(part, part) for part in arguments]) == code
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "Traceback" not in complaint
    assert not (tmp_path / "x").exists()


def test_a_dry_run_prints_the_configuration_and_writes_nothing(
    run_command: RunCommand, tiny_model: Path, tmp_path: Path
) -> None:
    result = run_command(
        "atlas-distill",
        tiny_model,
        "--tiles",
        "synthetic:8",
        "--out",
        "x",
        "--matryoshka",
        "64",
        "128",
        "--dry-run",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["matryoshka"] == [64, 128]
    fit = run_command(
        "atlas-distill", "fit", tiny_model, "synthetic:8", "--out", "x", "--views", "3", "--dry-run", cwd=tmp_path
    )
    assert fit.returncode == 0, fit.stderr
    options = json.loads(fit.stdout)
    assert options["views"] == 3 and "steps" not in options
    assert not list(tmp_path.iterdir())
