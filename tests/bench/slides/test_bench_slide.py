"""The slide bench through the real command line, on a slide that it draws and a bundle that computes means."""

import json
from pathlib import Path

import pytest

from atlas_edge.bench.slides.end_to_end import _bottleneck
from embed.conftest import make_mean_bundle
from support import RunCommand

for module in ("openslide", "tifffile", "imagecodecs", "openvino"):
    pytest.importorskip(module)


def test_slide_bench(tmp_path: Path, run_command: RunCommand) -> None:
    bundle = make_mean_bundle(tmp_path / "bundle")
    kept = tmp_path / "kept.tif"
    done = run_command(
        "atlas-bench", "slide", "--synthetic", "1500x1200", "--keep", kept, "--bundle", bundle, "--tiles", "64",
        "--rounds", "2", "--batch", "16", "--scanner-seconds", "1000", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    figures = report["bundles"][str(bundle)]
    assert report["measured_tiles"] == 64 < report["tiles"] < 46 * 37
    assert figures["keeps_up"] is True
    rounds = figures["rounds_tiles_per_s"]["end to end"]
    assert figures["end_to_end_tiles_per_s"] == pytest.approx(sum(rounds) / 2, abs=1e-2)
    assert figures["turnaround_s"] == pytest.approx(
        report["setup_s"] + report["tiles"] / figures["end_to_end_tiles_per_s"], rel=1e-6
    )
    assert {name: len(values) for name, values in figures["rounds_tiles_per_s"].items()} == {
        "encoder only": 2, "end to end": 2, "one more thread": 2, "one more stream": 2,
    }  # fmt: skip
    stages = figures["stages"]
    # 128 tiles in both rounds, one decode thread: no stage lasts longer than the turns did.
    lasted = sum(64 / rate for rate in rounds)
    each = [stages[name] for name in ("read_s", "decode_s", "resample_s", "inference_s", "write_s")]
    assert min(each) > 0 and max(each) <= lasted
    assert stages["read_s"] + stages["decode_s"] + stages["resample_s"] <= 1.05 * lasted
    assert "SYNTHETIC" in done.stderr
    again = run_command("atlas-bench", "slide", kept, "--bundle", bundle, "--rounds", "1")
    assert again.returncode == 2
    assert "--rounds 2" in again.stderr


def test_two_bundles_of_one_model_are_told_apart_and_must_want_the_same_tiles(
    tmp_path: Path, run_command: RunCommand
) -> None:
    ends = "openvino-int8", "openvino-fp32"
    bundles = [make_mean_bundle(tmp_path / f"a-model-with-a-rather-long-name-{end}") for end in ends]
    slide = "atlas-bench", "slide", "--synthetic", "1500x1200", "--tiles", "16", "--rounds", "2"
    done = run_command(*slide, "--bundle", bundles[0], "--bundle", bundles[1])
    assert done.returncode == 0, done.stderr
    table = done.stderr[done.stderr.index("On the slide") :]
    assert all(bundle.name in table for bundle in bundles)
    larger = make_mean_bundle(tmp_path / "larger", tile_px=64)
    done = run_command(*slide, "--bundle", bundles[0], "--bundle", larger)
    assert done.returncode == 2
    assert "32 px at 0.5 µm per pixel; 64 px at 0.5 µm per pixel" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--synthetic", "big"], "WIDTHxHEIGHT"),
        (["--synthetic", "20x20"], "cannot be made"),
        ([], "one of the two"),
    ],
)
def test_slide_bench_says_what_is_wrong(run_command: RunCommand, arguments: list[str], message: str) -> None:
    done = run_command("atlas-bench", "slide", *arguments, "--bundle", "none")
    assert done.returncode == 2
    assert message in done.stderr


def test_a_slide_that_is_not_there_is_told_first(run_command: RunCommand, tmp_path: Path) -> None:
    done = run_command("atlas-bench", "slide", tmp_path / "none.svs", "--bundle", "atlas2-s")
    assert done.returncode == 5
    assert "none.svs does not exist, expected a slide" in " ".join(done.stderr.split())


def test_bottleneck_counts_what_shares_a_thread_together() -> None:
    fast = {"read": 300.0, "decode": 200.0, "resample": 300.0, "write": 9e3}
    assert _bottleneck({**fast, "inference": 60.0}) == "inference"
    assert _bottleneck({**fast, "inference": 100.0}) == "decode"  # 75 a second together
    assert _bottleneck({"decode": 200.0, "inference": 100.0, "write": 50.0}) == "write"
