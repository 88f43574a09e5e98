"""Everything that `atlas-bench speed` measures, into one report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.encoders import EncoderFacts, OpenedEncoders, bundle_device
from atlas_edge.bench.machine import this_machine
from atlas_edge.bench.options import MPP, SpeedOptions
from atlas_edge.bench.progress import progress_bar
from atlas_edge.bench.report.schema import Report
from atlas_edge.bench.selftest.run import selftest_tiles
from atlas_edge.bench.speed.cold_start import ColdStart, cold_start
from atlas_edge.bench.speed.energy import Energy, find_counter, measure_energies
from atlas_edge.bench.speed.figures import SpeedReport
from atlas_edge.bench.speed.layers import LayerTimes, layer_times
from atlas_edge.bench.speed.operations import gop_per_tile
from atlas_edge.bench.speed.pace import Pace, pace
from atlas_edge.bench.speed.roofline import Roofline, roofline
from atlas_edge.bench.speed.sweep import BATCHES, Setting, Sweep, settings_of, sweep
from atlas_edge.bench.speed.timing import at_size, paired_speed
from atlas_edge.encoder import Encoder
from atlas_edge.models.load import load_encoder
from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.spec import Target
from atlas_edge.system.hardware import usable_cores

if TYPE_CHECKING:
    from rich.console import Console

_TILES = 64
_SWEEP_BLOCK_SECONDS = 0.3


def run_speed(opened: OpenedEncoders, options: SpeedOptions, *, reference: str, screen: "Console") -> Report:
    """Measure; steps are announced on the screen.

    Args:
        opened: The encoders.
        options: What to measure.
        reference: Label of the encoder that the ratios refer to.
        screen: Where progress goes.
    """
    tiles = timing_tiles(opened.encoders, options.batch)
    speed = paired_speed(
        opened.encoders,
        tiles,
        reference=reference,
        batch=options.batch,
        rounds=options.rounds,
        block_seconds=options.block_seconds,
    )
    return Report(
        command=("atlas-bench", *sys.argv[1:]),
        machine=this_machine(),
        encoders=opened.facts,
        speed=speed,
        sweeps=_sweeps(opened, options, screen) if options.sweep else {},
        cold_starts=_cold_starts(opened.facts, options, screen) if options.cold_start else {},
        energies=_energies(opened.encoders, tiles, screen),
        roofline=_roofline(opened, options, tiles, screen) if options.roofline else None,
        layers=_layers(opened.facts, options) if options.roofline else {},
        paces=paces(speed, opened.facts, options),
    )


def timing_tiles(encoders: dict[str, Encoder], batch: int) -> NDArray[np.uint8]:
    """Synthetic tiles of the first encoder's size: pixels do not change the time that an encoder takes."""
    first = next(iter(encoders.values()))
    return selftest_tiles(first.spec, max(_TILES, batch))


def time_encoders(opened: OpenedEncoders, *, rounds: int, batch: int = 8) -> SpeedReport:
    """Latency and throughput beside an accuracy report, against the same reference."""
    assert opened.reference is not None
    tiles = timing_tiles(opened.encoders, batch)
    return paired_speed(opened.encoders, tiles, reference=opened.reference, batch=batch, rounds=rounds)


def paces(speed: SpeedReport, facts: dict[str, EncoderFacts], options: SpeedOptions | None = None) -> dict[str, Pace]:
    """Every encoder's throughput in the lab's terms."""
    options = options or SpeedOptions()
    return {
        name: pace(
            found.throughput.tiles_per_s,
            tile_px=facts[name].spec.tile_px,
            mpp=options.mpp or facts[name].spec.mpp or MPP,
            slide_mm2=options.slide_mm2,
            scanner_seconds=options.scanner_seconds,
        )
        for name, found in speed.encoders.items()
    }


def _sweeps(opened: OpenedEncoders, options: SpeedOptions, screen: "Console") -> dict[str, Sweep]:
    most = options.threads or usable_cores()
    counts = sorted({1, *(2**power for power in range(1, 7) if 2**power <= most), most})
    found = {}
    for name, encoder in opened.encoders.items():
        able = encoder.capabilities
        batches = (able.batch,) if able.fixed_batch and able.batch else BATCHES
        settings = settings_of(threads=counts, batches=batches, streams=able.configure is not None)
        screen.print(f"sweeping {len(settings)} settings of {name}", style="dim", markup=False)
        given, spec = opened.facts[name].given, encoder.spec

        def open_setting(setting: Setting, given: str = given) -> Encoder:
            fresh = load_encoder(given, threads=setting.threads, device=bundle_device(given, options.device))
            configure = fresh.capabilities.configure
            if configure is not None:
                configure(batch=setting.batch, streams=setting.streams)
            return fresh

        with progress_bar(screen) as progress:
            found[name] = sweep(
                open_setting,
                settings,
                selftest_tiles(spec, _TILES),
                block_seconds=min(_SWEEP_BLOCK_SECONDS, options.block_seconds),
                progress=lambda done, total: progress("sweep", done, total),
            )
    return found


def _cold_starts(facts: dict[str, EncoderFacts], options: SpeedOptions, screen: "Console") -> dict[str, ColdStart]:
    screen.print("opening each encoder in fresh processes", style="dim")
    return {
        name: cold_start(
            fact.given,
            threads=options.threads,
            batch=options.batch,
            device=bundle_device(fact.given, options.device),
        )
        for name, fact in facts.items()
    }


def _energies(encoders: dict[str, Encoder], tiles: NDArray[np.uint8], screen: "Console") -> dict[str, Energy]:
    found = {name: find_counter(encoder) for name, encoder in encoders.items()}
    counters = {name: counter for name, counter in found.items() if counter is not None}
    missing = ", ".join(name for name in found if name not in counters)
    if missing:
        text = f"the energy counter of its device (NVML, RAPL) cannot be read here: energy is left out of {missing}"
        screen.print(text, style="dim", markup=False)
    sized = {name: at_size(tiles, encoder.spec.tile_px) for name, encoder in encoders.items()}
    return measure_energies(encoders, sized, counters)


def _roofline(
    opened: OpenedEncoders, options: SpeedOptions, tiles: NDArray[np.uint8], screen: "Console"
) -> Roofline | None:
    on_cpu = {name: encoder for name, encoder in opened.encoders.items() if encoder.capabilities.gpu is None}
    left_out = ", ".join(name for name in opened.encoders if name not in on_cpu)
    if left_out:
        screen.print(f"the peaks are the processor's: no roofline of {left_out}", style="dim", markup=False)
    if not on_cpu:
        return None
    screen.print("measuring this machine's matrix products", style="dim")
    counted = {name: gop_per_tile(opened.facts[name].given, encoder) for name, encoder in on_cpu.items()}
    return roofline(
        on_cpu,
        {name: gops for name, gops in counted.items() if gops is not None},
        {name: opened.facts[name].precision for name in on_cpu},
        tiles,
        threads=options.threads,
        rounds=max(5, options.rounds // 2),
        batch=options.batch,
    )


def _layers(facts: dict[str, EncoderFacts], options: SpeedOptions) -> dict[str, LayerTimes]:
    return {
        name: layer_times(Path(fact.given), batch=options.batch, threads=options.threads)
        for name, fact in facts.items()
        if fact.target is not None and runtime_of(Target(fact.target)).layers is not None
    }
