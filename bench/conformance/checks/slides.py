"""HDF5 of `atlas-embed`, by which OpenSlide, CLAM and TRIDENT cut the tiles anew: are they those that were embedded?"""

import importlib.util
import io
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.bench.accuracy.agreement import tile_cosines
from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.bench.selftest.run import SOUND
from atlas_edge.bundle import open_bundle, sha256_file
from atlas_edge.encoder import Encoder
from atlas_edge.errors import RuntimeMissing
from atlas_edge.spec import Precision
from atlas_edge.system.hardware import installed_module, installed_versions

_SIDE_PX = 1024
_MOST_TILES = 8
# The slide is drawn at 0.5 µm per pixel and cut at that, so that nothing is resampled on either side.
_MPP = 0.5
_COMMAND = "atlas-embed SLIDE --bundle BUNDLE --out slide.h5   # then {} on slide.h5"

# Tiles of these rows of the file, cut from the slide by somebody else's reader.
_Reader = Callable[[Path, Path, Sequence[int]], list[Image.Image]]


def _read_by(reader: _Reader) -> Callable[[Subject], Answer]:
    """A check: tiles that this reader cuts by our file, embedded again, against the file's features."""

    def run(subject: Subject) -> Answer:
        if any(installed_module(name) is None for name in ("h5py", "openslide", "tifffile", "imagecodecs")):
            raise Skip("pip install 'atlas-edge[slides]'")
        try:
            encoder = open_bundle(subject.bundle)
        except RuntimeMissing as error:
            raise Skip(error.message) from error
        try:
            with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # readers print
                worst, count = _worst_cosine(reader, encoder, Path(folder))
        finally:
            encoder.close()
        said = f"{count} whole tiles cut anew by the file's own coordinates and attributes: worst cosine {worst:.6f}"
        # The same pixels, through the same runtime.
        return Answer(passed=1.0 - worst <= SOUND[Precision.FP32], said=said)

    return run


def _worst_cosine(reader: _Reader, encoder: Encoder, folder: Path) -> tuple[float, int]:
    from atlas_edge.embed import EmbedConfig, embed_slide
    from atlas_edge.slides.synthetic import make_slide

    slide, out = folder / "slide.tif", folder / "slide.h5"
    make_slide(slide, _SIDE_PX, _SIDE_PX)
    embed_slide(slide, encoder, out, EmbedConfig(tissue=False, tile_mpp=_MPP, overview=False))
    rows, features = _telling_tiles(out, encoder)
    try:
        cut = reader(slide, out, rows)
    except ImportError as error:
        raise Skip(f"it lacks something that it imports: {error}") from error
    again = encoder.encode(np.stack([_fitted(image, encoder) for image in cut]))
    return float(tile_cosines(features, again).min()), len(rows)


def _telling_tiles(out: Path, encoder: Encoder) -> tuple[list[int], NDArray[np.float32]]:
    """Rows of whole tiles that are least like one another, and their features `(N, D)`.

    Beyond the rim OpenSlide gives black, and we white glass; and glass looks alike at any scale.
    """
    import h5py

    with h5py.File(out) as file:
        whole = np.flatnonzero((file["coords"][:] + encoder.spec.tile_px <= _SIDE_PX).all(axis=1))
        features = file["features"][:][whole].astype(np.float32)
    apart = np.argsort(-np.linalg.norm(features - np.median(features, axis=0), axis=1), kind="stable")[:_MOST_TILES]
    return whole[apart].tolist(), features[apart]


def _openslide(slide: Path, out: Path, rows: Sequence[int]) -> list[Image.Image]:
    """As CLAM's `Whole_Slide_Bag_FP` cuts them."""
    import h5py
    import openslide

    with h5py.File(out) as file:
        coords, attributes = file["coords"][:], dict(file["coords"].attrs)
    level, side = int(attributes["patch_level"]), int(attributes["patch_size"])
    with openslide.OpenSlide(slide) as opened:
        return [opened.read_region((int(x), int(y)), level, (side, side)) for x, y in coords[rows]]


def _clam(slide: Path, out: Path, rows: Sequence[int]) -> list[Image.Image]:
    import openslide
    from dataset_modules.dataset_h5 import Whole_Slide_Bag_FP  # type: ignore[import-not-found, unused-ignore]

    with openslide.OpenSlide(slide) as opened:
        bag = Whole_Slide_Bag_FP(file_path=str(out), wsi=opened, img_transforms=lambda image: image)
        return [bag[row]["img"] for row in rows]


def _trident(slide: Path, out: Path, rows: Sequence[int]) -> list[Image.Image]:
    """As its `WSI.extract_patch_features` goes about it, whose patches go to an encoder."""
    from trident import WSIPatcherDataset, load_wsi  # type: ignore[import-not-found, unused-ignore]
    from trident.IO import read_coords  # type: ignore[import-not-found, unused-ignore]

    attributes, coords = read_coords(str(out))
    patcher = load_wsi(str(slide), reader_type="openslide").create_patcher(
        patch_size=attributes["patch_size"],
        src_mag=attributes["level0_magnification"],
        dst_mag=attributes["target_magnification"],
        custom_coords=coords,
        coords_only=False,
        pil=True,
    )
    patches = WSIPatcherDataset(patcher, None)
    return [patches[row][0] for row in rows]


def _fitted(region: Any, encoder: Encoder) -> NDArray[np.uint8]:
    side = encoder.spec.tile_px
    image = region.convert("RGB")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def _clam_version() -> str | None:
    """It is a folder of scripts without a version: which file it reads by."""
    path = _file_of("dataset_modules", "dataset_h5.py")
    return None if path is None else f"dataset_h5.py {sha256_file(path)[:12]}"


def _trident_version() -> str | None:
    """PyPI's `trident` is a program of astronomers."""
    if _file_of("trident", "wsi_objects", "WSIPatcher.py") is None:
        return None
    return installed_versions(("trident",)).get("trident", "of no version")


def _file_of(package: str, *inside: str) -> Path | None:
    """A file of a package that is installed; None where there is none. Imports nothing."""
    found = importlib.util.find_spec(package)
    folders = (found.submodule_search_locations or ()) if found is not None else ()
    return next((path for folder in folders if (path := Path(folder, *inside)).is_file()), None)


CHECKS = (
    Check(
        program="OpenSlide",
        distribution="openslide-python",
        asked="HDF5 read as CLAM reads it",
        run=_read_by(_openslide),
        command=_COMMAND.format("CLAM's Whole_Slide_Bag_FP"),
    ),
    Check(
        program="CLAM",
        distribution="CLAM",
        asked="HDF5, its Whole_Slide_Bag_FP",
        run=_read_by(_clam),
        command=_COMMAND.format("dataset_modules.dataset_h5.Whole_Slide_Bag_FP"),
        version=_clam_version,
    ),
    Check(
        program="TRIDENT",
        distribution="TRIDENT",
        asked="HDF5, its read_coords and WSIPatcher",
        run=_read_by(_trident),
        command=_COMMAND.format("TRIDENT's WSI.extract_patch_features"),
        version=_trident_version,
    ),
)
