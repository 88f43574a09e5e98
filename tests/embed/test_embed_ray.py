"""A folder of slides over two Ray workers, through the real command line."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas_edge.cli import run_app
from atlas_edge.embed.cli import app
from atlas_edge.embed.config import EmbedConfig
from atlas_edge.embed.jobs import SlideSkipped
from atlas_edge.embed.ray.data import embed_with_ray
from atlas_edge.embed.workers import SlideJob
from embed.conftest import make_scan
from support import RunCommand

pytest.importorskip("ray", reason="pip install 'atlas-edge[ray]' to test it")
h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")


def test_two_ray_workers(mean_bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.tif", "b.tif", "sub/a.tif")):
        make_scan(folder / name, number)
    (folder / "zero.svs").touch()
    arguments = ["ray", folder, "--bundle", mean_bundle, "--out", out, "--workers", "2", "--json"]
    done = run_command("atlas-embed", *arguments)
    assert done.returncode == 5, done.stderr
    report = json.loads(done.stdout)
    assert len(report["slides"]) == 3
    # On a busy machine the first worker may have done all before the second one is up.
    assert len({slide["actor"] for slide in report["slides"] + report["failed"]} - {None}) in (1, 2)
    assert "0 bytes" in report["failed"][0]["reason"]
    assert "1 of 4 slides failed" in done.stderr
    for name in ("a", "b", "sub/a"):
        with h5py.File(out / f"{name}.h5") as file:
            assert len(file["features"]) == 600
    rest = run_command("atlas-embed", *arguments, "--dry-run")
    assert rest.returncode == 0, rest.stderr
    assert json.loads(rest.stdout)["to_do"] == [str((folder / "zero.svs").resolve())]
    (out / "b.h5").write_bytes(b"")
    rest = run_command("atlas-embed", *arguments, "--dry-run")
    assert rest.returncode == 5, rest.stderr
    report = json.loads(rest.stdout)
    assert report["to_do"] == [str((folder / "zero.svs").resolve())]
    assert [Path(failure["slide"]).name for failure in report["failed"]] == ["b.tif"]


def test_as_many_workers_are_asked_for_as_were_wanted(mean_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    class Asked(Exception):
        pass

    def ask(_: Any, worker: Any, **options: Any) -> None:
        raise Asked(worker.__name__, options["compute"].min_size, options["compute"].max_size, options["num_cpus"])

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray.data, "from_items", lambda *_, **__: SimpleNamespace(map=partial(ask, None)))
    with pytest.raises(Asked) as asked:
        list(embed_with_ray([(Path("a.svs"), {0: Path("a.h5")})], {0: str(mean_bundle)}, EmbedConfig(), workers=3))
    assert asked.value.args == ("_SlideEmbedder", 3, 3, 1)


def test_what_ray_says_of_dead_workers_is_no_part_of_the_json(
    mean_bundle: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def embedded(jobs: list[SlideJob], *_: Any, **__: Any) -> Iterator[tuple[SlideSkipped, str]]:
        print("(raylet) A worker died or was killed")
        yield SlideSkipped(slide=str(jobs[0][0]), out=str(jobs[0][1][0]), why="no tissue"), "actor"

    monkeypatch.setattr("atlas_edge.embed.ray.data.embed_with_ray", embedded)
    words = ["ray", str(scan.parent), "--bundle", str(mean_bundle), "--out", str(tmp_path / "out"), "--json"]
    assert run_app(app, words) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["skipped"]) == 1 and "(raylet)" in said.err


def test_a_cluster_that_is_none_is_said(
    mean_bundle: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ray", str(scan.parent), "--bundle", str(mean_bundle), "--out", str(tmp_path / "out"), "--address"]
    assert run_app(app, [*words, "nowhere"]) == 4
    assert "no Ray cluster at --address nowhere: Invalid address" in capsys.readouterr().err
