"""`atlas-bench accuracy` as a user runs it: the gate, a planted defect, bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas_edge.bundle import read_manifest, write_manifest
from support import RunCommand

Plant = Callable[[Path, Path], str]
PATIENT = "H21-12345-Muster"


@pytest.fixture(scope="module")
def planted(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with the weight scales of one layer multiplied by 8."""
    out = tmp_path_factory.mktemp("planted") / "tiny-x8"
    multiply_scales(bundle, out, layer=2, factor=8.0)
    return out


def multiply_scales(bundle: Path, out: Path, *, layer: int, factor: float) -> None:
    openvino = pytest.importorskip("openvino")
    shutil.copytree(bundle, out)
    model = openvino.Core().read_model(str(bundle / "model.xml"))
    scales = [
        matmul.input_value(1).get_node()
        for matmul in model.get_ordered_ops()
        if matmul.get_type_name() == "MatMul" and matmul.input_value(1).get_node().get_type_name() == "Multiply"
    ]
    assert len(scales) > layer, "no quantized layer to plant a defect in"
    constant = scales[layer].input_value(1).get_node()
    assert constant.get_type_name() == "Constant"
    wrong = openvino.opset13.constant(constant.get_data() * factor)
    scales[layer].input(1).replace_source_output(wrong.output(0))
    openvino.save_model(model, str(out / "model.xml"), compress_to_fp16=False)
    write_manifest(out, read_manifest(bundle))


def test_a_planted_defect_fails_the_gate_and_a_sound_bundle_beside_it_passes(
    bundle: Path, planted: Path, tiny_model: Path, tiles: Path, run_command: RunCommand
) -> None:
    done = run_command(
        "atlas-bench", "accuracy", bundle, planted, "--reference", tiny_model, "--eval", tiles, "--stress-tiles", "4",
        "--max-flip", "25", "--verbose", "--min-cosine", "0.99", "--json",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    verdicts = {(check["candidate"], check["option"]): check["verdict"] for check in report["gate"]["checks"]}
    # 32 tiles tell that a 1st percentile is bad, never that it is good.
    assert verdicts == {
        ("tiny", "--max-flip"): "PASS", ("tiny", "--min-cosine"): "INCONCLUSIVE",
        ("tiny-x8", "--max-flip"): "PASS", ("tiny-x8", "--min-cosine"): "FAIL",
    }  # fmt: skip
    assert "tiny-x8: cosine, 1st percentile: FAIL (--min-cosine 0.99)" in done.stderr
    assert "about 368 tiles would settle it; there are 32" in done.stderr
    low = report["accuracy"]["candidates"]["tiny"]["agreement"]["cosine_p1_interval"]["low"]
    assert low == -1 and "It has no lower end (-1): that takes 368 independent tiles" in " ".join(done.stderr.split())
    stress = report["accuracy"]["candidates"]["tiny-x8"]["stress"]
    assert len(stress) == 8


def test_a_bundle_against_itself_drops_nothing_and_passes_budgets_of_nothing(
    bundle: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    (tmp_path / "budgets.toml").write_text("[default]\nmax_knn_drop_pp = 0.0\n[candidate.tiny]\nmin_cosine = 1.0\n")
    done = run_command(
        "atlas-bench", "accuracy", bundle, "--reference", bundle, "--eval", tiles, "--max-drop", "0", "--max-flip", "0",
        "--budgets", tmp_path / "budgets.toml", "--stress-tiles", "0", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["gate"]["verdict"] == "PASS"
    assert {check["option"] for check in report["gate"]["checks"]} == {
        "--max-drop", "--max-knn-drop", "--max-flip", "--min-cosine"
    }  # fmt: skip
    candidate = report["accuracy"]["candidates"]["tiny"]
    assert candidate["agreement"]["identical"]
    assert [(drop["drop_pp"], drop["high_pp"], drop["flips"]) for drop in candidate["drops"]] == [(0.0, 0.0, 0.0)] * 4


def test_too_few_tiles_are_inconclusive_and_it_says_how_many_would_do(
    bundle: Path, tiny_model: Path, tiles: Path, run_command: RunCommand
) -> None:
    done = run_command(
        "atlas-bench", "accuracy", bundle, "--reference", tiny_model, "--eval", tiles, "--max-drop", "1",
        "--limit", "8", "--stress-tiles", "0",
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    assert "INCONCLUSIVE (--max-drop 1)" in done.stderr
    assert "tiles would settle it; there are 8" in done.stderr
    assert "drop" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        ((), 2, "no bundle to compare"),
        (("BUNDLE", "--max-drop", "1"), 2, "--reference MODEL"),
        (("BUNDLE", "--reference", "MODEL", "--max-drop", "-1"), 2, "--max-drop"),
        (("BUNDLE", "--reference", "MODEL", "--budgets", "none.toml"), 5, "none.toml does not exist"),
        (("BUNDLE", "BUNDLE", "--reference", "MODEL"), 2, "named twice"),
        (("no-such-bundle", "--reference", "MODEL"), 2, "no model is called"),
    ],
)
def test_bad_requests_exit_with_the_command_that_mends_them(
    arguments: tuple[str, ...],
    exit_code: int,
    said: str,
    bundle: Path,
    tiny_model: Path,
    tiles: Path,
    run_command: RunCommand,
) -> None:
    words = [{"BUNDLE": bundle, "MODEL": tiny_model}.get(word, word) for word in arguments]
    done = run_command("atlas-bench", "accuracy", *words, "--eval", tiles)
    assert done.returncode == exit_code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_embeds_nothing(bundle: Path, tiny_model: Path, tiles: Path, run_command: RunCommand) -> None:
    done = run_command("atlas-bench", "accuracy", bundle, "--reference", tiny_model, "--eval", tiles, "--dry-run")
    assert done.returncode == 0
    assert "would compare tiny-vit, tiny on 32 tiles" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("keep", [False, True])
def test_no_file_of_a_report_names_the_patient(
    keep: bool, bundle: Path, planted: Path, tiles: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    study = tmp_path / PATIENT
    shutil.copytree(tiles, study / PATIENT)
    for path in sorted((study / PATIENT).glob("*/**/*"), reverse=True):  # a folder a patient, and the name in its files
        path.rename(path.with_name(f"{PATIENT}-{path.name}"))
    done = run_command(
        "atlas-bench", "accuracy", planted, "--reference", bundle, "--eval", study / PATIENT, "--stress-tiles", "0",
        "--limit", "16", "--fit-limit", "8", "--report", tmp_path / "report", *["--keep-paths"] * keep,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = {path.name for path in (tmp_path / "report").iterdir() if PATIENT.encode() in path.read_bytes()}
    assert told == ({"report.json", "report.md", "report.html"} if keep else set())
    worst = json.loads((tmp_path / "report" / "report.json").read_text())["accuracy"]["candidates"]["tiny-x8"]
    assert len(worst["worst_tiles"]) == 8
    assert keep or all(name.endswith(" of 16") for name in worst["worst_tiles"])
