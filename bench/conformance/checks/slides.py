"""HDF5 of `atlas-embed`, read as CLAM reads it, from a slide that OpenSlide cuts."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.bench.accuracy.agreement import tile_cosines
from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.bench.selftest.run import SOUND
from atlas_edge.bundle import open_bundle
from atlas_edge.encoder import Encoder
from atlas_edge.errors import RuntimeMissing
from atlas_edge.spec import Precision
from atlas_edge.system.hardware import installed_module

_SIDE_PX = 1024
_MOST_TILES = 8
# The slide is drawn at 0.5 µm per pixel and cut at that, so that nothing is resampled on either side.
_MPP = 0.5


def _clam(subject: Subject) -> Answer:
    if any(installed_module(name) is None for name in ("h5py", "tifffile", "imagecodecs")):
        raise Skip("pip install 'atlas-edge[slides]'")
    from atlas_edge.embed import EmbedConfig, embed_slide
    from atlas_edge.slides.synthetic import make_slide

    try:
        encoder = open_bundle(subject.bundle)
    except RuntimeMissing as error:
        raise Skip(error.message) from error
    try:
        with tempfile.TemporaryDirectory() as folder:
            slide, out = Path(folder) / "slide.tif", Path(folder) / "slide.h5"
            make_slide(slide, _SIDE_PX, _SIDE_PX)
            embed_slide(slide, encoder, out, EmbedConfig(tissue=False, tile_mpp=_MPP, overview=False))
            stored, again = _as_clam_reads(slide, out, encoder)
    finally:
        encoder.close()
    worst = float(tile_cosines(stored, again).min())
    said = f"{len(stored)} whole tiles cut anew by the file's own coordinates and attributes: worst cosine {worst:.6f}"
    # The same pixels, through the same runtime.
    return Answer(passed=1.0 - worst <= SOUND[Precision.FP32], said=said)


def _as_clam_reads(slide: Path, out: Path, encoder: Encoder) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of the file, and those of tiles cut as `Whole_Slide_Bag_FP` cuts them, made to the encoder's size."""
    import h5py
    import openslide

    with h5py.File(out) as file:
        coords, attributes = file["coords"][:], dict(file["coords"].attrs)
        # Beyond the rim OpenSlide gives black, and we white glass.
        whole = np.flatnonzero((coords + encoder.spec.tile_px <= _SIDE_PX).all(axis=1))
        # Glass looks alike at any scale: tiles that are least like one another.
        stored = file["features"][:][whole].astype(np.float32)
        apart = np.argsort(-np.linalg.norm(stored - np.median(stored, axis=0), axis=1), kind="stable")[:_MOST_TILES]
        coords, features = coords[whole][apart], stored[apart]
    level, side = int(attributes["patch_level"]), int(attributes["patch_size"])
    with openslide.OpenSlide(slide) as opened:
        cut = [_fitted(opened.read_region((int(x), int(y)), level, (side, side)), encoder) for x, y in coords]
    return features, encoder.encode(np.stack(cut))


def _fitted(region: Any, encoder: Encoder) -> NDArray[np.uint8]:
    side = encoder.spec.tile_px
    image = region.convert("RGB")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


CHECKS = (
    Check(
        program="OpenSlide",
        distribution="openslide-python",
        asked="HDF5 read as CLAM reads it",
        run=_clam,
        command="atlas-embed SLIDE --bundle BUNDLE --out slide.h5   # then CLAM's Whole_Slide_Bag_FP on slide.h5",
    ),
)
