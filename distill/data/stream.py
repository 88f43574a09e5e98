"""Training batches as a function of the step number: a killed run goes on where it was without replaying anything.

Batch s of seed r is the same in every run and process: the order of an epoch and every fresh view are drawn from (r,
epoch) and (r, epoch, view). Tiles are decoded ahead in threads while the student trains; only the batches in flight
are held.
"""

import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from atlas_edge.distill.data.augment import Augmentation, fresh_view, stored_view
from atlas_edge.distill.data.cache import FeatureCache
from atlas_edge.distill.data.order import BalancedOrder, EvenOrder
from atlas_edge.distill.data.teachers import Features, Teacher
from atlas_edge.distill.data.tileset import TrainingTiles, tile_hash
from atlas_edge.errors import UsageError
from atlas_edge.manifest import ModelProvenance

_SAMPLED_AT_ONCE = 32


class Targets(Protocol):
    """Where a teacher's features come from: a cache, or the teacher itself."""

    teacher: ModelProvenance
    fingerprint: str | None
    dim: int
    grid: int | None

    def of(self, views: NDArray[np.int64], hashes: NDArray[np.int64], shown: NDArray[np.uint8]) -> Features:
        """Features of `(B,)` views whose stored halves are `shown`, `(B, H, W, 3)`."""
        ...


class CachedTargets:
    """A teacher's stored features."""

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache
        self.teacher, self.dim, self.grid = cache.teacher, cache.dim, cache.grid
        self.fingerprint: str | None = cache.index.fingerprint()

    def of(self, views: NDArray[np.int64], hashes: NDArray[np.int64], shown: NDArray[np.uint8]) -> Features:
        """See `Targets.of`; a tile whose pixels changed is refused."""
        return self._cache.features(views, hashes)


class OnlineTargets:
    """A teacher that runs beside the student."""

    def __init__(self, teacher: Teacher, *, grid: int | None) -> None:
        self._teacher = teacher
        self.teacher, self.dim, self.grid = teacher.provenance, teacher.spec.embed_dim, grid
        self.fingerprint = teacher.provenance.sha256

    def of(self, views: NDArray[np.int64], hashes: NDArray[np.int64], shown: NDArray[np.uint8]) -> Features:
        """See `Targets.of`."""
        return self._teacher.features(shown, grid=self.grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """One process's share of a step: `(B, H, W, 3)` uint8 student views and every teacher's features."""

    step: int
    pixels: NDArray[np.uint8]
    features: tuple[Features, ...]

    def parts(self, count: int) -> Iterator["TrainingBatch"]:
        """The batch in so many parts of nearly equal size."""
        if count == 1:
            yield self
            return
        ends = [len(self.pixels) * number // count for number in range(count + 1)]
        for first, last in itertools.pairwise(ends):
            features = tuple(found.some(slice(first, last)) for found in self.features)
            yield TrainingBatch(step=self.step, pixels=self.pixels[first:last], features=features)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewStream:
    """What is drawn from.

    Attributes:
        tiles: Tiles.
        targets: One a teacher.
        origins: Models other than these whose weights the student begins with.
        seeds: Stored views of each tile.
        stored: Ranges of the stored half of a view.
        fresh: Ranges of the half that only the student sees.
        fresh_share: Share of views that get a fresh half.
        tile_px: Side of the views.
        batch: Views a step, over all processes.
        seed: Seed of fresh views.
        order: Which views come when.
        rank: Number of this process.
        world: Processes.
    """

    tiles: TrainingTiles
    targets: tuple[Targets, ...]
    origins: tuple[ModelProvenance, ...]
    seeds: tuple[int, ...]
    stored: Augmentation
    fresh: Augmentation
    fresh_share: float
    tile_px: int
    batch: int
    seed: int
    order: EvenOrder | BalancedOrder
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise UsageError(f"--batch {self.batch} does not divide among {self.world} processes")
        if self.batch > self.views:
            raise UsageError(
                f"--batch {self.batch} is more than the {self.views} views that there are", hint="lower --batch"
            )

    @property
    def views(self) -> int:
        """Tiles times seeds."""
        return len(self.tiles) * len(self.seeds)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the views left over come in another epoch's order."""
        return self.views // self.batch

    def read(self, step: int) -> TrainingBatch:
        """This process's share of a step's batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        places = np.arange(place * self.batch, (place + 1) * self.batch)[self.rank :: self.world]
        views = self.order.at(places, epoch)
        shown, hashes = self._stored(views)
        pixels = [self.freshen(view, number, epoch=epoch) for view, number in zip(shown, views.tolist(), strict=True)]
        features = tuple(target.of(views, hashes, shown) for target in self.targets)
        return TrainingBatch(step=step, pixels=np.stack(pixels), features=features)

    def run(self, first: int, last: int, *, threads: int = 1) -> Generator[TrainingBatch, None, None]:
        """Batches of steps `first` to `last - 1`, at most `threads + 1` of them decoded ahead."""
        pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="views")
        waiting: list[Future[TrainingBatch]] = []
        try:
            for step in range(first, last):
                waiting.append(pool.submit(self.read, step))
                if len(waiting) > threads + 1:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def sample(self, count: int) -> Generator[tuple[NDArray[np.uint8], tuple[Features, ...]], None, None]:
        """At most `count` views spread over all and their features, a few at a time: what is needed before training."""
        views = self._spread(count)
        for start in range(0, len(views), _SAMPLED_AT_ONCE):
            part = views[start : start + _SAMPLED_AT_ONCE]
            shown, hashes = self._stored(part)
            yield shown, tuple(target.of(part, hashes, shown) for target in self.targets)

    def sample_views(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """At most `count` views spread over all: as a teacher sees them, and as the student does."""
        shown, _ = self._stored(self._spread(count))
        return shown, np.stack([self.freshen(view, number, epoch=0) for number, view in enumerate(shown)])

    def _spread(self, count: int) -> NDArray[np.int64]:
        return np.unique(np.linspace(0, self.views - 1, min(count, self.views)).astype(np.int64))

    def _stored(self, views: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        shown, hashes = [], []
        for view in views.tolist():
            index, seed = view % len(self.tiles), self.seeds[view // len(self.tiles)]
            tile = self.tiles.read(index)
            hashes.append(tile_hash(tile))
            shown.append(stored_view(tile, self.tiles.id(index), seed, self.stored, tile_px=self.tile_px))
        return np.stack(shown), np.array(hashes, dtype=np.int64)

    def freshen(self, view: NDArray[np.uint8], number: int, *, epoch: int) -> NDArray[np.uint8]:
        """The view as the student sees it in an epoch."""
        generator = np.random.default_rng([self.seed, epoch, number])
        if generator.random() >= self.fresh_share:
            return view
        return fresh_view(view, generator, self.fresh)
