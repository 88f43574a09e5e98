"""The real command line on good and bad slides; every fault is made, not imagined."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.slides import TileReader, open_slide, plan_grid
from embed.conftest import RunHere, make_scan, mean_embeddings
from support import ROOT, RunCommand

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")


def test_forms_hold_the_same(scan: Path, mean_bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    zarr = pytest.importorskip("zarr")
    parquet = pytest.importorskip("pyarrow.parquet")
    for form in ("h5", "zarr", "parquet"):
        out = tmp_path / f"out.{form}"
        done = run_command("atlas-embed", scan, "--bundle", mean_bundle, "--no-tissue", "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        (result,) = json.loads(done.stdout)["slides"]
        assert result["tiles"] == 600
    with h5py.File(tmp_path / "out.h5") as file:
        features, coords = file["features"][:], file["coords"][:]
        assert file["coords"].attrs["patch_size_level0"] == 32
        assert file.attrs["bundle_sha256"]
    slide = open_slide(scan)
    tiles = TileReader(slide, plan_grid(slide, None, tile_px=32, mpp=0.5)).read(coords).pixels
    slide.close()
    np.testing.assert_allclose(features, mean_embeddings(tiles), rtol=1e-5)
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert np.array_equal(group["features"][:], features)
    assert np.array_equal(group["coords"][:], coords)
    assert group.attrs["mpp"] == pytest.approx(0.5)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert np.array_equal(np.stack(table["features"].to_numpy()), features)
    assert np.array_equal(np.stack([table["x"], table["y"]], axis=1), coords)
    assert table.schema.metadata[b"encoder"] == b"mean"
    assert {path.name for path in tmp_path.glob(".*")} == set()


def test_dry_run_writes_nothing(scan: Path, mean_bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    done = run_command(
        "atlas-embed", scan, "--bundle", mean_bundle, "--out", tmp_path / "out.h5", "--dry-run", "--json"
    )
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)["plans"]
    assert (plan["candidates"], plan["level"], plan["mpp"]) == (600, 0, pytest.approx(0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["scan.tif"]


@pytest.mark.parametrize(
    "typed",
    [["--streams", "0"], ["--tile-mpp", "inf"], ["ray", "--workers", "0"], ["ray", "--gpus-a-worker", "-1"]],
    ids=lambda typed: typed[-2],
)
def test_numbers_out_of_range_are_refused(typed: list[str], scan: Path, mean_bundle: Path, run_here: RunHere) -> None:
    *command, option, value = typed
    slides = [scan.parent] if command else [scan]
    said = run_here(
        *command, *slides, "--bundle", mean_bundle, "--out", scan.parent / "out", option, value, "--dry-run"
    )
    assert said.returncode == 2 and option in said.stderr


def test_what_would_be_embedded_is_one_line_a_slide(scan: Path, mean_bundle: Path, run_here: RunHere) -> None:
    said = run_here(scan, "--bundle", mean_bundle, "--out", scan.parent / ("o" * 80), "--dry-run")
    assert said.returncode == 0 and len(said.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nothing can be written to, for root either")
def test_where_nothing_can_be_written_is_named(scan: Path, mean_bundle: Path, run_command: RunCommand) -> None:
    done = run_command("atlas-embed", scan, "--bundle", mean_bundle, "--out", "/proc/out.h5")
    assert done.returncode == 5
    assert "/proc/" in done.stderr and "fix: check free disk space and permissions of that path" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_bad_slide_does_not_stop_the_rest(
    scan: Path, mean_bundle: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    (tmp_path / "zero.svs").touch()
    (tmp_path / "folder.svs").mkdir()
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "silent.tif", np.zeros((256, 256, 3), np.uint8), tile=(64, 64), metadata=None)
    slides = [tmp_path / name for name in ("zero.svs", "folder.svs", "silent.tif", "scan.tif")]
    done = run_command("atlas-embed", *slides, "--bundle", mean_bundle, "--no-tissue", "--out", tmp_path / "out")
    assert done.returncode == 5, done.stderr
    for message in ("zero.svs is empty (0 bytes)", "folder.svs is a folder", "--mpp VALUE", "3 of 4 slides failed"):
        assert message in done.stderr.replace("\n", " "), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scan.h5", "scan.overview.jpg"]


def test_one_unreadable_output_does_not_stop_the_rest(
    mean_bundle: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    slides, out = [make_scan(tmp_path / f"{name}.tif") for name in "ab"], tmp_path / "out"
    out.mkdir()
    (out / "a.h5").touch()
    arguments = [*slides, "--bundle", mean_bundle, "--out", out, "--json"]
    done = run_command("atlas-embed", *arguments)
    assert done.returncode == 2, done.stderr
    report = json.loads(done.stdout)
    assert [Path(item["slide"]).name for item in report["slides"]] == ["b.tif"]
    assert [Path(item["slide"]).name for item in report["failed"]] == ["a.tif"]
    assert "a.tif: FAILED: " in done.stderr
    assert "--re-embed" in done.stderr
    mended = run_command("atlas-embed", *arguments, "--re-embed")
    assert mended.returncode == 0, mended.stderr
    assert [Path(item["slide"]).name for item in json.loads(mended.stdout)["slides"]] == ["a.tif"]


def test_one_worker_a_device(mean_bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    slides = [make_scan(tmp_path / f"{number}.tif", number) for number in range(3)]
    out = tmp_path / "out"
    arguments = [*slides, "--bundle", mean_bundle, "--no-tissue", "--out", out, "--devices", "0,1", "--json"]
    refused = run_command("atlas-embed", *arguments)
    assert refused.returncode == 2, refused.stderr
    for message in ("runs on the processor here (OpenVINO", "leave --devices out"):
        assert message in refused.stderr.replace("\n", " ")
    assert not out.exists()
    # What every process of the command is told: that this runtime computes on a GPU.
    (tmp_path / "sitecustomize.py").write_text(
        "import dataclasses\nfrom atlas_edge.runtimes.openvino import OpenVinoEncoder as Encoder\n"
        "own = Encoder.capabilities.fget\n"
        "Encoder.capabilities = property(lambda self: dataclasses.replace(own(self), gpu=0))\n"
    )
    done = run_command("atlas-embed", *arguments, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT / "src")]))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["slides"]
    assert sorted(Path(result["slide"]).name for result in results) == ["0.tif", "1.tif", "2.tif"]
    assert {result["device"] for result in results} == {"0", "1"}, "one did all the work"
    firsts = []
    for number in range(3):
        with h5py.File(out / f"{number}.h5") as file:
            firsts.append(file["features"][0].tolist())
    assert len({tuple(first) for first in firsts}) == 3


def test_two_processes_on_one_output(scan: Path, mean_bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    from atlas_edge.embed.output.lock import output_lock

    with output_lock(tmp_path / "out.h5"):
        done = run_command("atlas-embed", scan, "--bundle", mean_bundle, "--no-tissue", "--out", tmp_path / "out.h5")
    assert done.returncode == 2, done.stderr
    assert f"another process ({os.getpid()}) is writing out.h5" in done.stderr
    assert not (tmp_path / "out.h5").exists()


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    from atlas_edge.embed.output.lock import output_lock

    code = (
        "import sys, time; from pathlib import Path; from atlas_edge.embed.output.lock import output_lock\n"
        "with output_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out.h5")], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    assert (tmp_path / ".out.h5.lock").exists()
    with output_lock(tmp_path / "out.h5"):
        pass
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 128 KiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_full(
    scan: Path, mean_bundle: Path, small_disk: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_disk / "out.h5"
    arguments = [scan, "--bundle", mean_bundle, "--no-tissue", "--out", out]
    done = run_command("atlas-embed", *arguments)
    assert done.returncode == 5, done.stderr
    assert "is full: 600 tiles need 0.31 MB more" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("size", ["64k", "160k"], ids=["in the journal", "in the output"])
def test_disk_that_fills_up_on_the_way(scan: Path, mean_bundle: Path, small_disk: Path, size: str) -> None:
    from atlas_edge.embed import EmbedConfig, embed_slide
    from atlas_edge.embed import slide as module
    from atlas_edge.embed.workers import open_encoder
    from atlas_edge.errors import InputError

    encoder, _ = open_encoder(str(mean_bundle), batch=32)
    subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)
    config, out = EmbedConfig(tissue=False, batch=32), small_disk / "out.h5"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="goes on where it stopped"):
        patch.setattr(module, "check_room", lambda *_, **__: None)
        patch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
        embed_slide(scan, encoder, out, config)
    assert not out.exists()
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    result = embed_slide(scan, encoder, out, config)
    assert result.resumed_tiles > 0
    embed_slide(scan, encoder, scan.parent / "whole.h5", config)
    with h5py.File(out) as resumed, h5py.File(scan.parent / "whole.h5") as whole:
        assert np.array_equal(resumed["features"][:], whole["features"][:])


def test_slide_that_grows_while_it_is_read(scan: Path, mean_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    command = [sys.executable, "-m", "atlas_edge.embed", scan, "--bundle", mean_bundle, "--no-tissue", "--out", out]
    process = subprocess.Popen(
        list(map(str, [*command, "--batch", "1"])),
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / ".out.h5.work" / "progress.json").exists() and process.poll() is None:
        time.sleep(0.002)
    with scan.open("ab") as file:
        file.write(b"more of it")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 5, said
    assert "changed while it was read" in said
    assert not out.exists()


@pytest.mark.parametrize("share", [0.1, 0.9, 0.99])
def test_truncated_svs(shared: Path, mean_bundle: Path, tmp_path: Path, run_command: RunCommand, share: float) -> None:
    data = (shared / "data" / "wsi" / "CMU-1-Small-Region.svs").read_bytes()
    cut = tmp_path / "cut.svs"
    cut.write_bytes(data[: int(len(data) * share)])
    done = run_command("atlas-embed", cut, "--bundle", mean_bundle, "--out", tmp_path / "out.h5")
    assert done.returncode == 5, done.stderr
    assert "cut.svs is cut off: a page should be at byte" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "out.h5").exists()


def test_damaged_svs(shared: Path, mean_bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    data = bytearray((shared / "data" / "wsi" / "CMU-1-Small-Region.svs").read_bytes())
    data[600_000:640_000] = bytes(40_000)
    damaged, out = tmp_path / "damaged.svs", tmp_path / "out.h5"
    damaged.write_bytes(data)
    arguments = ["atlas-embed", damaged, "--bundle", mean_bundle, "--out", out, "--json"]
    done = run_command(*arguments, "--max-unreadable", "0.1")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["slides"]
    assert result["unreadable"]
    assert all("cannot be decoded" in reason for reason in result["unreadable"].values())
    with h5py.File(out) as file:
        listed = {str(pair) for pair in file["unreadable_coords"][:].tolist()}
        assert listed == set(result["unreadable"])
        assert len(file["features"]) == result["tiles"] == len(file["coords"])
    done = run_command(*arguments, "--overwrite", "--max-unreadable", "0")
    assert done.returncode == 5
    assert "tiles are unreadable, at most 0 may be: [" in done.stderr


@pytest.mark.parametrize("refusal", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_file_systems_without_locks(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """NFS without its lock service, some SMB servers; None: neither fcntl nor msvcrt."""
    from atlas_edge.embed.output.lock import OutputBusy, output_lock
    from atlas_edge.system.process import ProcessId

    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        assert refusal is not None
        raise OSError(refusal, os.strerror(refusal))

    if refusal is None:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    out, lock = tmp_path / "out.h5", tmp_path / ".out.h5.locked"
    with output_lock(out):
        assert ProcessId.parse(lock.read_text()) == ProcessId.current()
        with (
            pytest.raises(OutputBusy, match=rf"another process \({os.getpid()}\) is writing out\.h5"),
            output_lock(out),
        ):
            pass
    assert not list(tmp_path.glob(".out*"))
    here = ProcessId.current()
    # Left behind by a process whose number another one has now.
    lock.write_text(str(dataclasses.replace(here, started=here.started - 1)))
    with output_lock(out):
        pass
    lock.write_text(str(dataclasses.replace(here, machine="elsewhere")))
    with pytest.raises(OutputBusy, match=r"remove .*\.out\.h5\.locked"), output_lock(out):
        pass
