"""Teacher features on disk: computed once, resumable, checked against the tiles that they belong to.

A cache is a folder with `cache.json` and shards `00000.safetensors` …, each with the features of a fixed range of
*views*. View v is augmentation seed `seeds[v // tiles]` of tile `v % tiles`. A shard holds `cls` (n, D) float16,
`patches` (n, grid², D) float16 where kept, and `hashes` (n,) int64 of the tiles' pixels.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from atlas_edge.distill.data.augment import Augmentation, stored_view
from atlas_edge.distill.data.teachers import Features, Teacher
from atlas_edge.distill.data.tileset import TrainingTiles, tile_hash
from atlas_edge.errors import ChecksumError, InputError, UsageError
from atlas_edge.manifest import ModelProvenance, TilesProvenance
from atlas_edge.system.atomic import write_atomic

_INDEX = "cache.json"
# 1 pooled the tokens of some teachers in another way than they ask for.
_SCHEMA = 2
_FLOAT16_MAX = 65_504.0
# Hashes of some tiles, and a view of each.
_Drawn = tuple[list[int], list[NDArray[np.uint8]]]


class CacheIndex(BaseModel):
    """`cache.json`.

    Attributes:
        teacher: Whose features they are.
        dim: Width of the embedding.
        tiles: How many tiles.
        tiles_fingerprint: Of the tile sets.
        sources: The tile sets, with their licences.
        seeds: Augmentation seeds kept for each tile; 0 is the plain tile.
        augmentation: Ranges of the stored half of a view.
        tile_px: Side of the views.
        grid: Side of the patch grid; None without patch tokens.
        shard_views: Views a shard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = _SCHEMA
    teacher: ModelProvenance
    dim: int
    tiles: int
    tiles_fingerprint: str
    sources: tuple[TilesProvenance, ...]
    seeds: tuple[int, ...]
    augmentation: dict[str, float]
    tile_px: int
    grid: int | None
    shard_views: int

    @property
    def drawn(self) -> tuple[tuple[int, ...], dict[str, float]]:
        """How views are drawn: equal for caches that can teach together."""
        return self.seeds, self.augmentation

    @property
    def views(self) -> int:
        """Views in all."""
        return self.tiles * len(self.seeds)

    def fingerprint(self) -> str:
        """SHA-256 of the index: of teacher, tiles and views together."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def shards(self) -> int:
        """Shards in all."""
        return -(-self.views // self.shard_views)


def write_cache(
    out: Path,
    teacher: Teacher,
    tiles: TrainingTiles,
    *,
    seeds: tuple[int, ...],
    augmentation: Augmentation,
    tile_px: int,
    grid: int | None,
    batch: int = 16,
    shard_views: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> CacheIndex:
    """Compute what is missing of a cache; shards that are whole are kept.

    Args:
        out: Folder.
        teacher: Whose features.
        tiles: Which tiles.
        seeds: Augmentation seeds of each tile; 0 is the plain tile.
        augmentation: Ranges of the views.
        tile_px: Side of the views.
        grid: Side of the student's patch grid, or None for CLS features only.
        batch: Tiles a teacher batch.
        shard_views: Views a shard.
        progress: Called with views done and views in all.

    Raises:
        UsageError: The folder holds another cache.
        InputError: Features are not finite, or too large for float16; or the folder holds a cache of another schema.
    """
    index = CacheIndex(
        teacher=teacher.provenance,
        dim=teacher.spec.embed_dim,
        tiles=len(tiles),
        tiles_fingerprint=tiles.fingerprint(),
        sources=tiles.provenance(),
        seeds=seeds,
        augmentation=asdict(augmentation),
        tile_px=tile_px,
        grid=grid,
        shard_views=shard_views,
    )
    out.mkdir(parents=True, exist_ok=True)
    if (out / _INDEX).exists() and _read_index(out) != index:
        raise UsageError(
            f"{out} holds the cache of another teacher, tile set or augmentation", hint="choose another --out"
        )
    write_atomic(out / _INDEX, (index.model_dump_json(indent=2) + "\n").encode())
    for shard in range(index.shards):
        first, last = shard * shard_views, min((shard + 1) * shard_views, index.views)
        path = out / f"{shard:05d}.safetensors"
        if not path.exists():
            write_atomic(path, save(_shard(teacher, tiles, index, augmentation, range(first, last), batch)))
        if progress is not None:
            progress(last, index.views)
    return index


class FeatureCache:
    """A finished cache, read view by view without holding it in memory.

    Args:
        folder: As `write_cache` made it.
        tiles: The tiles that training reads.

    Raises:
        InputError: Not a cache, or not finished.
        UsageError: It belongs to other tiles.
    """

    def __init__(self, folder: Path, tiles: TrainingTiles) -> None:
        self.index = _read_index(folder)
        if self.index.tiles_fingerprint != tiles.fingerprint():
            raise UsageError(
                f"{folder} holds features of other tiles than those given",
                hint="give the tile sets that it was made of",
            )
        paths = [folder / f"{shard:05d}.safetensors" for shard in range(self.index.shards)]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise InputError(
                f"{folder} is not finished: {len(missing)} of {len(paths)} shards are missing",
                hint="run the same atlas-distill cache command again: it goes on where it stopped",
            )
        self._paths = paths
        for path in paths:
            with _opened(path):
                pass
        self.teacher = self.index.teacher
        self.dim, self.grid = self.index.dim, self.index.grid

    def features(self, views: NDArray[np.int64], hashes: NDArray[np.int64] | None = None) -> Features:
        """Features of some views.

        Args:
            views: `(B,)` view numbers.
            hashes: `(B,)` hashes of the tiles that were read for them.

        Raises:
            ChecksumError: A tile's pixels are not those that the teacher saw.
        """
        order = np.argsort(views // self.index.shard_views, kind="stable")
        shards = views[order] // self.index.shard_views
        names = ("cls",) if self.grid is None else ("cls", "patches")
        found: dict[str, list[NDArray[np.float16]]] = {
            name: [np.empty(0, dtype=np.float16)] * len(views) for name in names
        }
        # A shard is mapped only while it is read: what has been read of it would count as this process's memory.
        for number in np.unique(shards).tolist():
            with _opened(self._paths[number]) as shard:
                for place in order[shards == number].tolist():
                    row = int(views[place]) % self.index.shard_views
                    if hashes is not None and int(shard.get_slice("hashes")[row : row + 1][0]) != int(hashes[place]):
                        raise ChecksumError(
                            f"tile {views[place] % self.index.tiles} has other pixels than when its features were "
                            "computed",
                            hint="restore the tiles, or compute the cache again",
                        )
                    for name, rows in found.items():
                        rows[place] = shard.get_slice(name)[row]
        tensors = {name: torch.from_numpy(np.stack(rows)) for name, rows in found.items()}
        return Features(cls=tensors["cls"], patches=tensors.get("patches"))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as shard:
            yield shard
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}", hint="delete it and run atlas-distill cache again") from error


def _shard(
    teacher: Teacher, tiles: TrainingTiles, index: CacheIndex, augmentation: Augmentation, views: range, batch: int
) -> dict[str, NDArray[Any]]:
    def draw(start: int) -> _Drawn:
        hashes, shown = [], []
        for view in range(start, min(start + batch, views.stop)):
            number, seed = view % index.tiles, index.seeds[view // index.tiles]
            tile = tiles.read(number)
            hashes.append(tile_hash(tile))
            shown.append(stored_view(tile, tiles.id(number), seed, augmentation, tile_px=index.tile_px))
        return hashes, shown

    cls, patches, hashes = [], [], []
    for more, shown in _one_ahead(draw, range(views.start, views.stop, batch)):
        found = teacher.features(np.stack(shown), grid=index.grid)
        hashes += more
        cls.append(_half(found.cls, index.teacher.name))
        if found.patches is not None:
            patches.append(_half(found.patches, index.teacher.name))
    arrays: dict[str, NDArray[Any]] = {"cls": np.concatenate(cls), "hashes": np.array(hashes, dtype=np.int64)}
    if patches:
        arrays["patches"] = np.concatenate(patches)
    return arrays


def _one_ahead(function: Callable[[int], _Drawn], items: Iterable[int]) -> Iterator[_Drawn]:
    """Results in order; the next one is computed while this one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="views") as pool:
        waiting: deque[Future[_Drawn]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _half(features: torch.Tensor, teacher: str) -> NDArray[np.float16]:
    largest = float(features.abs().max())
    if not largest < _FLOAT16_MAX:
        raise InputError(f"a feature of {teacher} is {largest:g}, more than float16 holds", hint="check the teacher")
    half: NDArray[np.float16] = features.half().cpu().numpy()
    return half


def _read_index(folder: Path) -> CacheIndex:
    path = folder / _INDEX
    if not path.is_file():
        raise InputError(f"{folder} is no feature cache: it has no {_INDEX}", hint="make one with atlas-distill cache")
    try:
        index = CacheIndex.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="compute the cache again") from error
    if index.schema_version != _SCHEMA:
        raise InputError(
            f"{path} is of schema version {index.schema_version}, expected {_SCHEMA}: its features may be others than "
            "the teacher's",
            hint=f"remove {folder} and compute it again with atlas-distill cache",
        )
    return index
