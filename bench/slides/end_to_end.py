"""How fast a slide goes from the file to its embeddings, which stage holds it up, and what would help."""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import Interval, geometric_mean_interval
from atlas_edge.bench.options import SlideBenchOptions
from atlas_edge.embed.pipeline import StageClock, StageSeconds, embedded, whole_batch
from atlas_edge.embed.resume.journal import Journal
from atlas_edge.embed.slide_files import slide_files
from atlas_edge.embed.workers import open_encoder
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError, UsageError
from atlas_edge.options import Running
from atlas_edge.slides import Slide, TileGrid, TileReader, find_tissue, open_slide, plan_grid
from atlas_edge.slides.open import check_file

SCAN_S_A_MM2 = 156 / 15**2
"""A fast scanner: 156 s for 15 x 15 mm (NanoZoomer S360; Genis et al. 2021)."""

_PAUSE_S = 0.05
# Prepares another program on the tiles of a grid; what it returns runs it once and gives its tiles per second.
Rival = Callable[[Path, TileGrid], Callable[[], float]]
_STAGES = ("read", "decode", "resample", "inference", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOnSlide:
    """One bundle's figures.

    Attributes:
        runtime: What executed it.
        streams: Calls side by side.
        encoder_only_tiles_per_s: Offline: the same tiles, decoded before the clock started. Mean of the rounds.
        end_to_end_tiles_per_s: From the file, not cached, to the journal on disk. Mean of the rounds.
        end_to_end_share: End to end over encoder only, paired by round.
        stages: Seconds of the end-to-end turns, summed.
        capacity_tiles_per_s: What each stage alone would reach, with the decode threads that it had.
        bottleneck: The stage that holds the rest up.
        one_more_thread: End to end with one more decode thread, over end to end.
        one_more_stream: The same with one more stream; None for a runtime without streams.
        over_rival: End to end over the rival; None where there was none.
        turnaround_s: Opening and finding tissue, and all tiles at the end-to-end rate; copying the journal into the
            file of features is not in it.
        keeps_up: Whether that is within the scanner's time.
        rounds_tiles_per_s: Every measured rate, by what was measured.
    """

    runtime: str
    streams: int
    encoder_only_tiles_per_s: float
    end_to_end_tiles_per_s: float
    end_to_end_share: Interval
    stages: StageSeconds
    capacity_tiles_per_s: dict[str, float]
    bottleneck: str
    one_more_thread: Interval
    one_more_stream: Interval | None
    over_rival: Interval | None
    turnaround_s: float
    keeps_up: bool
    rounds_tiles_per_s: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideBench:
    """A slide through several bundles that took turns.

    Attributes:
        slide: Path.
        vendor: As the reader calls it.
        tiles: Tiles with tissue on the whole slide.
        measured_tiles: Tiles of a turn.
        mpp: µm per pixel of the tiles.
        level: Level that was read.
        setup_s: Opening it and finding tissue.
        scanner_s: What the scanner takes for it.
        rival_tiles_per_s: The rival's mean rate; None where there was none.
        bundles: By name.
        notes: What the figures hold and do not hold.
    """

    slide: str
    vendor: str
    tiles: int
    measured_tiles: int
    mpp: float
    level: int
    setup_s: float
    scanner_s: float
    rival_tiles_per_s: float | None
    bundles: dict[str, BundleOnSlide]
    notes: tuple[str, ...]


def bench_slide(
    path: Path, bundles: list[str], options: SlideBenchOptions, *, rival: Rival | None = None
) -> SlideBench:
    """Measure bundles on a slide, all taking turns in one run, with another program where one is given.

    Raises:
        UsageError: No bundle, too few rounds, or bundles that want different tiles.
        InputError: The slide cannot be read, or has no tissue.
    """
    if not bundles or options.rounds < 2:
        raise UsageError(
            "nothing to compare: one --bundle and --rounds 2 at least", hint="see atlas-bench slide --help"
        )
    with ExitStack() as opened:
        return _bench(opened, path, bundles, options, rival)


def _bench(
    opened: ExitStack, path: Path, bundles: list[str], options: SlideBenchOptions, rival: Rival | None
) -> SlideBench:
    def open_one(name: str, streams: int | None) -> Encoder:
        encoder = open_encoder(name, batch=options.batch, streams=streams, running=Running(device=options.device))[0]
        opened.callback(encoder.close)
        return encoder

    check_file(path)
    encoders = {name: open_one(name, options.streams) for name in bundles}
    _forget_file(path)
    begun = time.perf_counter()
    slide = open_slide(path, mpp=options.mpp)
    grid = _grid(slide, list(encoders.values()), options)
    setup_s = time.perf_counter() - begun
    part = _middle(grid, options.tiles)
    pixels = TileReader(slide, part).read(part.coords).pixels
    area_mm2 = slide.levels[0].width * slide.mpp_x * slide.levels[0].height * slide.mpp_y / 1e6
    scanner_s = options.scanner_s if options.scanner_s is not None else area_mm2 * SCAN_S_A_MM2
    vendor = slide.vendor
    slide.close()
    turns = {
        name: _Turns(encoder, partial(open_one, name), path, part, pixels, options)
        for name, encoder in encoders.items()
    }
    rival_rates = _take_turns(turns, None if rival is None else rival(path, part), options.rounds)
    return SlideBench(
        slide=str(path),
        vendor=vendor,
        tiles=len(grid.coords),
        measured_tiles=len(part.coords),
        mpp=grid.mpp,
        level=grid.level,
        setup_s=setup_s,
        scanner_s=scanner_s,
        rival_tiles_per_s=float(np.mean(rival_rates)) if rival_rates else None,
        bundles={
            name: turn.summary(rival_rates, tiles=len(grid.coords), setup_s=setup_s, scanner_s=scanner_s)
            for name, turn in turns.items()
        },
        notes=_notes(options, len(part.coords), len(grid.coords)),
    )


def _grid(slide: Slide, encoders: list[Encoder], options: SlideBenchOptions) -> TileGrid:
    wanted = {(encoder.spec.tile_px, options.tile_mpp or encoder.spec.mpp) for encoder in encoders}
    if len(wanted) > 1:
        each = sorted(
            f"{side} px at {'an unstated' if mpp is None else f'{mpp:g}'} µm per pixel" for side, mpp in wanted
        )
        raise UsageError(
            f"the bundles want different tiles: {'; '.join(each)}",
            hint="bench them one by one, or give --tile-mpp where only the µm per pixel differ",
        )
    tile_px, mpp = wanted.pop()
    if mpp is None:
        raise UsageError("the bundle does not say its µm per pixel", hint="add --tile-mpp 0.5")
    grid = plan_grid(slide, find_tissue(slide), tile_px=tile_px, mpp=mpp, rim=True)
    if len(grid.coords) == 0:
        raise InputError(f"{slide.path} has no tissue", hint="bench another slide, or --synthetic 20000x20000")
    return grid


def _middle(grid: TileGrid, tiles: int) -> TileGrid:
    first = max((len(grid.coords) - tiles) // 2, 0)
    return dataclasses.replace(grid, coords=grid.coords[first : first + tiles])


def _take_turns(turns: dict[str, "_Turns"], rival: Callable[[], float] | None, rounds: int) -> list[float]:
    """One discarded turn of everything, then the rounds, in an order that rotates; returns the rival's rates."""
    rates: list[float] = []
    for number in range(-1, rounds):
        calls = [call for turn in turns.values() for call in turn.calls()]
        if rival is not None:
            calls.append(lambda: rates.append(rival()))
        shift = max(number, 0) % len(calls)
        for call in calls[shift:] + calls[:shift]:
            # Threads of the one before may still spin.
            time.sleep(_PAUSE_S)
            call()
        if number < 0:
            rates.clear()
            for turn in turns.values():
                turn.forget()
    return rates


class _Turns:
    """What is measured of one bundle."""

    def __init__(
        self,
        encoder: Encoder,
        open_with: Callable[[int], Encoder],
        path: Path,
        part: TileGrid,
        pixels: NDArray[np.uint8],
        options: SlideBenchOptions,
    ) -> None:
        self.encoder = encoder
        self.streams = encoder.capabilities.streams
        self._path, self._part, self._pixels, self._options = path, part, pixels, options
        configurable = encoder.capabilities.configure is not None
        self._more_streams = open_with(self.streams + 1) if configurable else None
        self._rates: dict[str, list[float]] = {}
        self._stages: list[StageSeconds] = []

    def calls(self) -> list[Callable[[], None]]:
        """Everything that takes a turn."""
        threads = self._options.threads
        calls = [
            self._encoder_only,
            lambda: self._end_to_end("end to end", self.encoder, threads),
            lambda: self._end_to_end("one more thread", self.encoder, threads + 1),
        ]
        more = self._more_streams
        if more is not None:
            calls.append(lambda: self._end_to_end("one more stream", more, threads))
        return calls

    def forget(self) -> None:
        """Drop what was measured."""
        self._rates.clear()
        self._stages.clear()

    def summary(self, rival_rates: list[float], *, tiles: int, setup_s: float, scanner_s: float) -> BundleOnSlide:
        """The figures."""
        rates = {name: np.array(values) for name, values in self._rates.items()}
        end_to_end = rates["end to end"]
        stages = _sum(self._stages)
        measured = len(self._part.coords) * len(self._stages)
        capacity = _capacity(stages, measured, self._options.threads, float(rates["encoder only"].mean()))
        turnaround_s = setup_s + tiles / float(end_to_end.mean())
        more_streams = rates.get("one more stream")
        return BundleOnSlide(
            runtime=self.encoder.runtime,
            streams=self.streams,
            encoder_only_tiles_per_s=float(rates["encoder only"].mean()),
            end_to_end_tiles_per_s=float(end_to_end.mean()),
            end_to_end_share=geometric_mean_interval(end_to_end / rates["encoder only"]),
            stages=stages,
            capacity_tiles_per_s=capacity,
            bottleneck=_bottleneck(capacity),
            one_more_thread=geometric_mean_interval(rates["one more thread"] / end_to_end),
            one_more_stream=None if more_streams is None else geometric_mean_interval(more_streams / end_to_end),
            over_rival=geometric_mean_interval(end_to_end / np.array(rival_rates)) if rival_rates else None,
            turnaround_s=turnaround_s,
            keeps_up=turnaround_s <= scanner_s,
            rounds_tiles_per_s={name: tuple(round(float(v), 3) for v in values) for name, values in rates.items()},
        )

    def _encoder_only(self) -> None:
        batch = whole_batch(self._options.batch, [self.encoder])
        begun = time.perf_counter()
        for start in range(0, len(self._pixels), batch):
            self.encoder.encode(self._pixels[start : start + batch])
        self._keep("encoder only", begun)

    def _end_to_end(self, name: str, encoder: Encoder, threads: int) -> None:
        # Opened anew: decoded tiles of the turn before would be in its cache.
        clock = StageClock()
        with closing(open_slide(self._path, mpp=self._options.mpp)) as slide, tempfile.TemporaryDirectory() as folder:
            read_before = slide.file_s or 0.0
            _forget_file(self._path)
            reader = TileReader(slide, self._part)
            with closing(Journal(Path(folder) / "bench.h5", {}, encoder.spec.embed_dim)) as journal:
                begun = time.perf_counter()
                batches = embedded(reader, [encoder], clock, firsts=[0], threads=threads, batch=self._options.batch)
                with closing(batches):
                    for done in batches:
                        with clock.stage("write"):
                            journal.append(done.features, done.unreadable)
                with clock.stage("write"):
                    journal.checkpoint()
                self._keep(name, begun)
            if name == "end to end":
                self._stages.append(clock.seconds(None if slide.file_s is None else slide.file_s - read_before))

    def _keep(self, name: str, begun: float) -> None:
        self._rates.setdefault(name, []).append(len(self._part.coords) / (time.perf_counter() - begun))


def _forget_file(path: Path) -> None:
    """Ask the system to drop all files of a slide from its cache, so that reading them is part of the figures."""
    if sys.platform == "linux":
        for part in slide_files(path):
            if part.is_dir():  # a DICOM slide may be given by its folder
                continue
            with part.open("rb") as file:
                os.fsync(file.fileno())  # a slide that was just drawn is not dropped before it is written back
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sum(stages: list[StageSeconds]) -> StageSeconds:
    return StageSeconds(
        read_s=None if stages[0].read_s is None else sum(stage.read_s or 0.0 for stage in stages),
        decode_s=sum(stage.decode_s for stage in stages),
        resample_s=sum(stage.resample_s for stage in stages),
        inference_s=sum(stage.inference_s for stage in stages),
        write_s=sum(stage.write_s for stage in stages),
        waiting_s=sum(stage.waiting_s for stage in stages),
    )


def _capacity(stages: StageSeconds, tiles: int, threads: int, encoder_tiles_per_s: float) -> dict[str, float]:
    """Tiles per second of each stage, were it alone. Decode threads share their three stages."""
    capacity = {}
    for name in _STAGES:
        seconds = getattr(stages, f"{name}_s")
        if name == "inference":
            capacity[name] = encoder_tiles_per_s
        elif seconds:
            capacity[name] = tiles * (1 if name == "write" else threads) / seconds
    return capacity


def _bottleneck(capacity: dict[str, float]) -> str:
    # Reading, decoding and resampling take turns in the same threads: together they feed the encoder.
    feeding = {name: capacity[name] for name in ("read", "decode", "resample") if name in capacity}
    together = 1 / sum(1 / rate for rate in feeding.values())
    slowest = {
        "inference": capacity["inference"],
        "write": capacity["write"],
        min(feeding, key=feeding.__getitem__): together,
    }
    return min(slowest, key=slowest.__getitem__)


def _notes(options: SlideBenchOptions, measured: int, tiles: int) -> tuple[str, ...]:
    notes = [
        "end to end: from the file, dropped from the system's cache where it allows that, to the journal on disk; "
        f"{options.threads} decode thread(s), batches of {options.batch}",
        f"the journal was written to {tempfile.gettempdir()}: set TMPDIR to the disk that results go to",
        "stages run side by side on the same cores, so each is slower than it would be alone",
    ]
    if measured < tiles:
        notes.append(f"turnaround: estimated from {measured} of {tiles} tiles")
    return tuple(notes)
