"""Tiles through an encoder: decoded ahead in threads, embedded in order, every stage timed."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.embed.crew import Crew
from atlas_edge.encoder import Encoder, capabilities_of
from atlas_edge.slides import TileReader
from atlas_edge.slides.focus import focus_of
from atlas_edge.slides.reader import ReadTiles

MEASURES = ("focus",)
"""What is measured of each tile, a float32 each."""

Tokens = NDArray[np.float16]
Besides = dict[str, NDArray[Any]]

_LARGEST_HALF = float(np.finfo(np.float16).max)
_Ready = tuple[ReadTiles, NDArray[np.float32]]
# Batches that lie ready, at most: some take longer to decode than others.
_AHEAD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Where the time went. Stages run side by side: they add up to more than the wall clock.

    Attributes:
        read_s: Reading the file's bytes, over all decode threads; None where OpenSlide reads and decodes in one.
        decode_s: Decompressing, over all decode threads; with reading where `read_s` is None.
        resample_s: Cutting, resampling and measuring, over all decode threads.
        inference_s: In the encoder.
        write_s: Journal and output.
        waiting_s: The encoder had nothing to do because no batch was decoded.
    """

    read_s: float | None = None
    decode_s: float = 0.0
    resample_s: float = 0.0
    inference_s: float = 0.0
    write_s: float = 0.0
    waiting_s: float = 0.0


class StageClock:
    """Gathers `StageSeconds`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside as `inference`, `write` or `waiting`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - begun)

    def decoded(self, tiles: ReadTiles) -> None:
        """Count what a batch took to read."""
        self._add("regions", tiles.read_s)
        self._add("resample", tiles.resample_s)

    def seconds(self, file_s: float | None) -> StageSeconds:
        """All of it; `file_s` is what the slide spent in reading bytes."""
        got = self._seconds.get
        return StageSeconds(
            read_s=file_s,
            decode_s=max(got("regions", 0.0) - (file_s or 0.0), 0.0),
            resample_s=got("resample", 0.0),
            inference_s=got("inference", 0.0),
            write_s=got("write", 0.0),
            waiting_s=got("waiting", 0.0),
        )

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBatch:
    """Consecutive tiles of a grid, embedded by one encoder.

    Attributes:
        by: Index of the encoder.
        start: Index of the first tile.
        features: `(B, D)` float32.
        focus: `(B,)` float32; see `focus_of`.
        tokens: `(B, N, C)` float16; None where nobody asked for them.
        unreadable: Index in the grid -> reason; their features are those of a white tile.
    """

    by: int
    start: int
    features: NDArray[np.float32]
    focus: NDArray[np.float32]
    tokens: Tokens | None
    unreadable: dict[int, str]

    @property
    def besides(self) -> Besides:
        """What the journal keeps of each tile beside its embedding."""
        return _besides(self.focus, self.tokens)


def whole_batch(batch: int, encoders: Sequence[Encoder]) -> int:
    """`batch`, or so many more tiles that no graph is filled up and every stream of an encoder computes equally often.

    Twelve streams of four tiles each compute 64 tiles in two rounds, of which the second has four calls for twelve
    streams; 96 tiles fill both. A batch that does not fill all streams once stays as it is.
    """
    able = [capabilities_of(encoder) for encoder in encoders]
    rounds = [(one.batch or 1) * one.streams for one in able]
    return max([batch, *(-(-batch // tiles) * tiles for tiles in rounds if tiles <= batch)])


def embedded(
    reader: TileReader,
    encoders: Sequence[Encoder],
    clock: StageClock,
    *,
    firsts: Sequence[int],
    threads: int | None,
    batch: int,
    tokens: bool = False,
) -> Generator[EmbeddedBatch, None, None]:
    """Embed the tiles of a grid batch by batch, in order; what is decoded goes to one encoder after the other.

    Args:
        reader: Of the slide.
        encoders: What embeds, all of them tiles of one side.
        clock: Gathers seconds.
        firsts: Of each encoder the tile that it begins with, by its index in the grid: whole batches apart.
        threads: Decode threads; added while the encoder waits for them when None.
        batch: Tiles a batch; see `whole_batch`.
        tokens: Give patch tokens, too.
    """
    batch = whole_batch(batch, encoders)
    # Closed however the loop ends, so that no thread reads on when the caller closes the slide.
    with closing(_decoded(reader, min(firsts), threads, batch)) as batches:
        while True:
            with clock.stage("waiting"):
                item = next(batches, None)
            if item is None:
                return
            start, (tiles, focus) = item
            clock.decoded(tiles)
            unreadable = {start + index: reason for index, reason in tiles.unreadable.items()}
            for by, (encoder, first) in enumerate(zip(encoders, firsts, strict=True)):
                if start < first:
                    continue
                with clock.stage("inference"):
                    features, dense = _encode(encoder, tiles.pixels, tokens)
                yield EmbeddedBatch(
                    by=by, start=start, features=features, focus=focus, tokens=dense, unreadable=unreadable
                )


def read_again(
    reader: TileReader, encoder: Encoder, waiting: list[int], *, batch: int, tokens: bool = False
) -> Iterator[tuple[list[int], NDArray[np.float32], Besides]]:
    """Embed the tiles of a list, by their index in the grid, that can be read now.

    Yields:
        Their indices and features, and what else the journal keeps.
    """
    for start in range(0, len(waiting), batch):
        part = waiting[start : start + batch]
        tiles = reader.read(reader.grid.coords[part])
        whole = [index for index in range(len(part)) if index not in tiles.unreadable]
        if whole:
            pixels = tiles.pixels[whole]
            features, dense = _encode(encoder, pixels, tokens)
            yield [part[index] for index in whole], features, _besides(focus_of(pixels), dense)


def _besides(focus: NDArray[np.float32], tokens: Tokens | None) -> Besides:
    return {"focus": focus} | ({} if tokens is None else {"tokens": tokens})


def _encode(encoder: Encoder, pixels: NDArray[np.uint8], tokens: bool) -> tuple[NDArray[np.float32], Tokens | None]:
    if not tokens:
        return encoder.encode(pixels), None
    features, dense = encoder.encode_tokens(pixels)
    return features, np.clip(dense, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)


def _decoded(
    reader: TileReader, first: int, threads: int | None, batch: int
) -> Generator[tuple[int, _Ready], None, None]:
    """Batches in order, decoded in threads: each has one in hand, and at most `_AHEAD` more lie ready or wait."""
    coords, waiting = reader.grid.coords, deque[tuple[int, "Future[_Ready]"]]()

    def read(part: NDArray[np.int64]) -> _Ready:
        return _measured(reader.read(part))

    with closing(Crew(read, threads)) as crew:
        for start in range(first, len(coords), batch):
            waiting.append((start, crew.submit(coords[start : start + batch])))
            if len(waiting) > crew.size + _AHEAD:
                ready, future = waiting.popleft()
                yield ready, crew.result(future)
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()


def _measured(tiles: ReadTiles) -> _Ready:
    begun = time.perf_counter()
    focus = focus_of(tiles.pixels)
    return replace(tiles, resample_s=tiles.resample_s + time.perf_counter() - begun), focus
