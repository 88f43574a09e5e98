"""What an output says of itself: for who audits it, and for CLAM and TRIDENT, which read tiles anew by it."""

from pathlib import Path
from typing import Any

from atlas_edge import __version__
from atlas_edge.embed.config import MAGNIFICATION_MPP
from atlas_edge.embed.slide_files import SlideIdentity, slide_stem
from atlas_edge.encoder import Encoder
from atlas_edge.slides import Slide, TileGrid, TissueMask
from atlas_edge.system.paths import printable

Attributes = dict[str, Any]


def slide_attributes(slide: Slide, identity: SlideIdentity, mask: TissueMask | None, grid: TileGrid) -> Attributes:
    """The slide's own facts and where its tiles lie; what a slide does not say is left out."""
    known = {
        "slide_mpp_y": slide.mpp_y,
        "slide_mpp_source": slide.mpp_source,
        "slide_stated_mpp": slide.stated_mpp[0] if slide.mpp_source != "slide" else None,
        "slide_bounds": slide.bounds,
        "slide_objective": slide.objective,
        "slide_icc_sha256": slide.icc_sha256,
        "slide_quickhash": slide.quickhash,
        "skipped_tiles": grid.skipped_tiles or None,
        "mask": mask.source if mask is not None else None,
        "saturation_threshold": mask.saturation_threshold if mask is not None else None,
    }
    return {
        "slide": printable(slide.path.name),
        "slide_size_bytes": identity.size_bytes,
        "slide_mtime_ns": identity.mtime_ns,
        "slide_mpp": slide.mpp_x,
        "slide_width": slide.levels[0].width,
        "slide_height": slide.levels[0].height,
        "vendor": slide.vendor,
        **{name: value for name, value in known.items() if value is not None},
        "mpp": grid.mpp,
        "level": grid.level,
        "level_downsample": slide.levels[grid.level].downsample_x,
    }


def run_attributes(encoder: Encoder, begun: str) -> Attributes:
    """What embedded it, and when that began."""
    return {
        "runtime": encoder.runtime,
        "random_weights": encoder.spec.random_weights,
        "embed_dim": encoder.spec.embed_dim,
        "begun": begun,
        "atlas_edge_version": __version__,
    }


def coords_attributes(grid: TileGrid, about: Attributes) -> Attributes:
    """The names that CLAM and TRIDENT look for on `coords`.

    CLAM cuts `patch_size` pixels of `patch_level`, so that is what a tile spans there, not the side that the encoder
    saw after resampling. TRIDENT cuts `patch_size * level0_magnification / target_magnification` pixels of level 0:
    the target is the level's magnification, and both see the encoder's field of view to within half a level pixel.
    """
    return {
        "name": slide_stem(Path(about["slide"])),
        "patch_size": round(grid.tile_px * grid.scale_x),
        "patch_level": grid.level,
        "patch_size_level0": round(grid.size_x),
        "custom_downsample": 1,
        "level0_magnification": MAGNIFICATION_MPP / about["slide_mpp"],
        "target_magnification": MAGNIFICATION_MPP / (about["slide_mpp"] * about["level_downsample"]),
        "overlap": round(grid.overlap * grid.scale_x),
        "level0_width": about["slide_width"],
        "level0_height": about["slide_height"],
    }
