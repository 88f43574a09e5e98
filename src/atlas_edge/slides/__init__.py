"""Whole slides: reading them, finding tissue, and laying a grid of tiles at the encoder's µm per pixel."""

from atlas_edge.slides.grid import TileGrid, plan_grid
from atlas_edge.slides.open import open_slide
from atlas_edge.slides.reader import TileReader
from atlas_edge.slides.slide import Level, Slide
from atlas_edge.slides.tissue.find import TissueMask, find_tissue

__all__ = ["Level", "Slide", "TileGrid", "TileReader", "TissueMask", "find_tissue", "open_slide", "plan_grid"]
