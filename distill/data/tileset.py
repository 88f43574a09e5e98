"""The unlabelled tiles that a student learns from: tile sets and slides, read one tile at a time."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError, UsageError
from atlas_edge.manifest import TilesProvenance
from atlas_edge.tiles import TileRecord, TileSource, open_tiles
from atlas_edge.tiles.overlap import check_disjoint
from atlas_edge.tiles.slide_spec import slide_spec
from atlas_edge.tiles.slide_tiles import SlideTiles


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTiles:
    """Tiles of all sources, in a fixed order.

    Attributes:
        sources: Where the pixels are.
        listings: Records of each.
        ends: `(sources,)` tiles of each source and those before it.
    """

    sources: tuple[TileSource, ...]
    listings: tuple[Sequence[TileRecord], ...]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def entry(self, index: int) -> tuple[int, TileRecord]:
        """Source number and record of a tile."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        listing = self.listings[number]
        return number, listing[index - int(self.ends[number]) + len(listing)]

    def slides(self) -> NDArray[np.int32]:
        """Number of each tile's slide, `(tiles,)`.

        Raises:
            UsageError: A tile set does not say of which slide a tile is.
        """
        numbers: dict[tuple[int, str], int] = {}
        found = np.empty(len(self), dtype=np.int32)
        for number, (source, listing) in enumerate(zip(self.sources, self.listings, strict=True)):
            own = found[self.ends[number] - len(listing) : self.ends[number]]
            # A million tiles of one slide need no records.
            groups = [source.slide_name] if isinstance(source, SlideTiles) else [record.group for record in listing]
            if None in groups:
                raise UsageError(f"{source.name} does not say of which slide its tiles are", hint="use --balance tiles")
            own[:] = [numbers.setdefault((number, str(group)), len(numbers)) for group in groups]
        return found

    def id(self, index: int) -> str:
        """Name of a tile, which seeds its views: into which shards a pack was cut does not change them."""
        number, record = self.entry(index)
        return f"{self.sources[number].name}/{record.id.rpartition('.zip/')[2]}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Decode one tile, `(H, W, 3)` uint8."""
        number, record = self.entry(index)
        return self.sources[number].read(record)

    @property
    def mpp_range(self) -> tuple[float, float] | None:
        """Finest and coarsest µm per pixel of the sets that are read at all between; None without such a set."""
        spans = [source.mpp_range for source in self.sources if source.mpp_range]
        return (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else None

    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of the sources, in order."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(f"{source.name}:{source.split}:{source.fingerprint()}\n".encode())
        return digest.hexdigest()

    def check_disjoint(self, source: TileSource, records: Sequence[TileRecord]) -> None:
        """Refuse tiles to look at that are learned from, or whose slides are.

        Raises:
            InputError: A slide or tile is in both.
        """
        for own, learned in zip(self.sources, self.listings, strict=True):
            check_disjoint(
                (own, learned), (source, records), names=("training", "held-out"), options=("--tiles", "--held-out")
            )

    def close(self) -> None:
        """Close the sources that hold a file open."""
        for source in self.sources:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    def provenance(self) -> tuple[TilesProvenance, ...]:
        """What the student's card says of the tiles."""
        return tuple(
            TilesProvenance(
                name=source.name,
                kind=source.kind,
                split=source.split,
                tiles=len(listing),
                fingerprint=source.fingerprint(),
                synthetic=source.synthetic,
                licence=source.licence,
            )
            for source, listing in zip(self.sources, self.listings, strict=True)
        )


def open_training_tiles(specs: Sequence[str], *, tile_px: int = 224) -> TrainingTiles:
    """Open tile sets and slides; a set that has splits gives its `train` split unless another is named.

    Args:
        specs: What `open_tiles` takes, or `SLIDE@MPP,MPP…` (see `slide_tiles`).
        tile_px: Side of the tiles cut from slides.

    Raises:
        InputError: A set is empty, or one is not there.
    """
    sources = tuple(
        open_tiles(spec, role="calibration") if slide is None else SlideTiles(slide, tile_px=tile_px)
        for spec, slide in ((spec, slide_spec(spec)) for spec in specs)
    )
    listings = tuple(source.listing() for source in sources)
    ends = np.cumsum([len(listing) for listing in listings], dtype=np.int64)
    if not len(ends) or not ends[-1]:
        raise InputError("the tile sets hold no tile", hint="give at least one folder of tiles")
    return TrainingTiles(sources=sources, listings=listings, ends=ends)


def tile_hash(tile: NDArray[np.uint8]) -> int:
    """First 63 bits of the SHA-256 of a tile's shape and pixels: tells whether a stored feature still fits its tile."""
    digest = hashlib.sha256(f"{tile.shape}".encode() + np.ascontiguousarray(tile).tobytes()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
