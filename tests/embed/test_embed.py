"""Slides through the real command line, and a kill in the middle of one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.watch.encoder import WatchedEncoder
from atlas_edge.encoder import Capabilities
from atlas_edge.errors import InputError
from atlas_edge.slides import TileReader, open_slide
from atlas_edge.slides.grid import plan_grid
from atlas_edge.spec import EncoderSpec

h5py = pytest.importorskip("h5py")
pytest.importorskip("tifffile")
pytest.importorskip("openslide")

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[2]
# So that a kill finds a slide begun and not done, however fast the machine.
KEEPS_EVERY_BATCH = """
import sys
from atlas_edge.embed import cli, fill
fill._CHECKPOINT_S = 0.0
sys.argv[0] = "atlas-embed"
cli.main()
"""


class MeanEncoder:
    """Mean colour of each of 4 x 4 cells: an embedding that can be checked by hand."""

    runtime = "numpy"
    capabilities = Capabilities()
    spec = EncoderSpec(
        name="mean",
        architecture="mean",
        embed_dim=48,
        tile_px=32,
        mpp=0.5,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        pooling="avg",
    )

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        cells = tiles.reshape(len(tiles), 4, 8, 4, 8, 3).astype(np.float32).mean(axis=(2, 4))
        return cells.reshape(len(tiles), -1)

    def close(self) -> None:
        pass


def contents(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with h5py.File(path) as file:
        return file["features"][:], file["coords"][:]


def test_features_and_coords_belong_together(scan: Path, tmp_path: Path) -> None:
    encoder, out = MeanEncoder(), tmp_path / "out.h5"
    result = embed_slide(scan, encoder, out, EmbedConfig(tissue=False, batch=7, threads=2))
    features, coords = contents(out)
    assert result.tiles == len(coords) == (640 // 32) * (960 // 32)
    slide = open_slide(scan)
    tiles = TileReader(slide, plan_grid(slide, None, tile_px=32, mpp=0.5)).read(coords).pixels
    slide.close()
    assert np.array_equal(features, encoder.encode(tiles))
    with h5py.File(out) as file:
        assert file.attrs["mpp"] == pytest.approx(0.5)
        assert file["coords"].attrs["patch_size"] == 32
    assert not list(tmp_path.glob(".*"))


class FailsLate(MeanEncoder):
    def __init__(self, calls: int) -> None:
        self.calls = calls

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().encode(tiles)


def test_an_encoder_need_not_say_how_it_runs(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MeanEncoder, "capabilities")
    encoder = WatchedEncoder(MeanEncoder(), batch=8)
    assert encoder.capabilities == Capabilities()
    assert embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", EmbedConfig(tissue=False)).tiles > 0


def test_goes_on_where_it_stopped(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
    config = EmbedConfig(tissue=False, batch=7)
    embed_slide(scan, MeanEncoder(), tmp_path / "whole.h5", config)
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, FailsLate(20), tmp_path / "resumed.h5", config)
    assert not (tmp_path / "resumed.h5").exists()
    kept = tmp_path / ".resumed.h5.work" / "progress.json"
    begun = "2026-01-02T03:04:05+00:00"
    kept.write_text(json.dumps({**json.loads(kept.read_bytes()), "begun": begun}))
    result = embed_slide(scan, MeanEncoder(), tmp_path / "resumed.h5", config)
    assert 0 < result.resumed_tiles < result.tiles
    for whole, resumed in zip(contents(tmp_path / "whole.h5"), contents(tmp_path / "resumed.h5"), strict=True):
        assert whole.tobytes() == resumed.tobytes()
    with h5py.File(tmp_path / "resumed.h5") as file:
        assert file.attrs["begun"] == begun


@pytest.mark.parametrize("fails_in", ["encode", "append"])
def test_no_thread_reads_a_slide_that_is_closed(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    from atlas_edge.embed.resume.journal import Journal
    from atlas_edge.slides.readers.openslide import OpenSlideFile

    genuine, inside = OpenSlideFile.close, []

    def close(self: OpenSlideFile) -> None:
        inside.append([thread.name for thread in threading.enumerate() if thread.name.startswith("decode")])
        genuine(self)

    def fails(self: Journal, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("atlas_edge.slides.readers.direct.open_direct", lambda slide, cache_bytes: None)
    monkeypatch.setattr(OpenSlideFile, "close", close)
    if fails_in == "append":
        monkeypatch.setattr(Journal, "append", fails)
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, FailsLate(3), tmp_path / "out.h5", EmbedConfig(tissue=False, batch=7))
    assert inside == [[]]


def test_notices_that_a_slide_grows(scan: Path, tmp_path: Path) -> None:
    class Grows(MeanEncoder):
        def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            with scan.open("ab") as file:
                file.write(b"more")
            return super().encode(tiles)

    with pytest.raises(InputError, match="changed while it was read"):
        embed_slide(scan, Grows(), tmp_path / "out.h5", EmbedConfig(tissue=False))
    assert not (tmp_path / "out.h5").exists()


def test_lists_unreadable_tiles_up_to_a_limit(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.slides.readers.openslide import OpenSlideFile

    genuine = OpenSlideFile._read

    def damaged(self: OpenSlideFile, handle: object, level: int, x: int, y: int, width: int, height: int):  # type: ignore[no-untyped-def]
        if y <= 40 < y + height and x <= 70 < x + width:
            raise InputError("damaged")
        return genuine(self, handle, level, x, y, width, height)

    monkeypatch.setattr(OpenSlideFile, "_read", damaged)
    result = embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", EmbedConfig(tissue=False))
    assert result.unreadable == {"[64, 32]": "damaged"}
    features, coords = contents(tmp_path / "out.h5")
    assert len(features) == len(coords) == 599
    with pytest.raises(InputError, match="1 of 600 tiles are unreadable, at most 0"):
        embed_slide(scan, MeanEncoder(), tmp_path / "b.h5", EmbedConfig(tissue=False, max_unreadable=0))


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("zero.svs", b"", 5, "0 bytes"),
        ("text.svs", b"nothing", 5, "no slide form"),
        ("none.svs", None, 5, "does not exist"),
    ],
)
def test_bad_slides_on_the_command_line(
    run_command: RunCommand,
    mean_bundle: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    code: int,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = ["--bundle", mean_bundle, "--out", tmp_path / "o.h5"]
    done = run_command("atlas-embed", tmp_path / name, *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.h5").exists()


def test_killed_and_run_again(scan: Path, mean_bundle: Path, tmp_path: Path, run_command: RunCommand) -> None:
    arguments = ["--bundle", mean_bundle, "--no-tissue", "--batch", "1"]
    whole = run_command("atlas-embed", scan, *arguments, "--out", tmp_path / "whole.h5")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-c", KEEPS_EVERY_BATCH, scan, *arguments, "--out", tmp_path / "killed.h5"]
    process = subprocess.Popen(
        list(map(str, command)), env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    progress = tmp_path / ".killed.h5.work" / "progress.json"
    while not (progress.exists() and json.loads(progress.read_bytes())["rows"]) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.h5").exists(), "it was done before the kill"
    again = run_command("atlas-embed", scan, *arguments, "--out", tmp_path / "killed.h5", "--json")
    assert again.returncode == 0, again.stderr
    (resumed,) = json.loads(again.stdout)["slides"]
    assert 0 < resumed["resumed_tiles"] < 600
    for first, second in zip(contents(tmp_path / "whole.h5"), contents(tmp_path / "killed.h5"), strict=True):
        assert first.tobytes() == second.tobytes()
    assert not list(tmp_path.glob(".*"))


def test_says_that_other_options_begin_anew(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("atlas_edge.embed.fill._CHECKPOINT_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        embed_slide(scan, FailsLate(20), tmp_path / "out.h5", EmbedConfig(tissue=False, batch=7))
    result = embed_slide(scan, MeanEncoder(), tmp_path / "out.h5", EmbedConfig(tissue=False, batch=8))
    assert result.resumed_tiles == 0
    (said,) = [record.getMessage() for record in caplog.records]
    assert "an earlier run of other options had" in said


def test_a_scale_that_the_encoder_never_saw_is_told(
    scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = MeanEncoder()
    encoder.spec = encoder.spec.model_copy(update={"mpp": None, "mpp_range": (0.5, 1.0)})
    for tile_mpp in (0.5, 2.0):
        embed_slide(scan, encoder, tmp_path / f"{tile_mpp}.h5", EmbedConfig(tissue=False, tile_mpp=tile_mpp))
    said = [record.getMessage() for record in caplog.records]
    assert said == ["mean learnt tiles of 0.5 to 1 µm per pixel, and these have 2"]


def test_a_model_is_told_from_others_by_its_weights(tiny_model: Path, mean_bundle: Path) -> None:
    from atlas_edge.bundle import MANIFEST, sha256_file
    from atlas_edge.embed.workers import read_spec

    spec, known_by = read_spec(str(tiny_model))
    assert (spec.tile_px, known_by) == (32, sha256_file(tiny_model / "model.safetensors"))
    assert read_spec(str(mean_bundle))[1] == sha256_file(mean_bundle / MANIFEST)
