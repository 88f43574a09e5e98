"""A bundle without PyTorch: mean colours, so that its embeddings can be computed by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bundle import write_manifest
from atlas_edge.manifest import Execution, Manifest, ModelProvenance
from atlas_edge.spec import EncoderSpec, Precision, Target

CELLS = 4


class Ran(NamedTuple):
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str


RunHere = Callable[..., Ran]


def make_mean_bundle(folder: Path, tile_px: int = 32) -> Path:
    """An OpenVINO bundle: mean colour of each of 4 x 4 cells, 48 numbers."""
    import openvino
    from openvino import opset13 as ops

    folder.mkdir(parents=True)
    side = tile_px // CELLS
    tiles = ops.parameter([-1, tile_px, tile_px, 3], np.uint8, name="tiles")
    tiles.output(0).set_names({"tiles"})
    cells = ops.reshape(ops.convert(tiles, "f32"), np.array([-1, CELLS, side, CELLS, side, 3]), special_zero=False)
    embedding = ops.reshape(ops.reduce_mean(cells, np.array([2, 4])), np.array([-1, 48]), special_zero=False)
    embedding.output(0).set_names({"embedding"})
    openvino.save_model(openvino.Model([embedding], [tiles], "mean"), folder / "model.xml", compress_to_fp16=False)
    spec = EncoderSpec(
        name="mean", architecture="mean", embed_dim=48, tile_px=tile_px, mpp=0.5, mean=(0, 0, 0), std=(1, 1, 1),
        pooling="avg",
    )  # fmt: skip
    write_manifest(
        folder,
        Manifest(
            encoder=spec,
            target=Target.OPENVINO,
            precision=Precision.FP32,
            execution=Execution(model_file="model.xml"),
            versions={},
            command=(),
            config={},
            model=ModelProvenance(name="mean", source="registry"),
            files=(),
        ),
    )
    return folder


def mean_embeddings(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    side = tiles.shape[1] // CELLS
    cells = tiles.reshape(len(tiles), CELLS, side, CELLS, side, 3).astype(np.float32)
    return cells.mean(axis=(2, 4)).reshape(len(tiles), -1)


@pytest.fixture(scope="session")
def mean_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    return make_mean_bundle(tmp_path_factory.mktemp("mean") / "bundle")


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Run `atlas-embed` in this process: a tenth of the time that one of its own takes."""
    from atlas_edge.cli import run_app
    from atlas_edge.embed.cli import app

    def run(*arguments: str | Path) -> Ran:
        code = run_app(app, [str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A slide of 600 tiles of 32 px at 0.5 µm per pixel."""
    return make_scan(tmp_path / "scan.tif")


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """A drop folder with slides a.tif and c.tif."""
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("ac"):
        make_scan(tmp_path / "in" / f"{name}.tif", seed)
    return tmp_path / "in"


def lose_tiles(patch: pytest.MonkeyPatch, *places: int) -> list[int]:
    """Have a share be gone for a moment: of the second batch that is read tiles are lost. How many each call reads."""
    from atlas_edge.slides import TileReader

    genuine, calls = TileReader.read, list[int]()

    def read(self: TileReader, coords: NDArray[np.int64]) -> object:
        tiles = genuine(self, coords)
        calls.append(len(coords))
        if len(calls) == 2:
            tiles.unreadable.update(dict.fromkeys(places, "gone"))
            tiles.pixels[list(places)] = 255
        return tiles

    patch.setattr(TileReader, "read", read)
    return calls


def make_scan(path: Path, seed: int = 0) -> Path:
    tifffile = pytest.importorskip("tifffile")
    image = np.random.default_rng(seed).integers(90, 180, (640, 960, 3), dtype=np.uint8)
    image[..., 0] += 70
    tifffile.imwrite(
        path, image, tile=(64, 64), photometric="rgb", metadata=None, resolution=(2e4, 2e4), resolutionunit="CENTIMETER"
    )
    return path
