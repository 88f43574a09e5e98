"""A report's speed section as text, row by row."""

from atlas_edge.bench.interval import Interval
from atlas_edge.bench.report.rows import Rows, interval_text
from atlas_edge.bench.report.schema import Report
from atlas_edge.bench.speed.energy import Energy
from atlas_edge.bench.speed.figures import SpeedReport
from atlas_edge.bench.speed.sweep import SweepPoint

_SWEPT = 12


def speed_rows(report: Report) -> list[Rows]:
    """Latency and throughput, sweeps, cold start, energy, roofline, layers, pace: what was measured."""
    makers = (_figures, _sweeps, _cold_starts, _energies, _roofline, _layers, _paces)
    return [rows for make in makers for rows in make(report)]


def throughput_and_latency(speed: SpeedReport) -> list[Rows]:
    """Both of MLPerf's scenarios, a table each."""
    return [_latency(speed), _throughput(speed)]


def _figures(report: Report) -> list[Rows]:
    return [] if report.speed is None else throughput_and_latency(report.speed)


def _latency(speed: SpeedReport) -> Rows:
    headings = ("encoder", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "mean ± σ ms", "CV", "over reference, 95 %")
    rows = []
    for name, found in speed.encoders.items():
        latency = found.latency
        cells = (
            name,
            *(_ms(value) for value in (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)),
            f"{_ms(latency.mean_ms)} ± {_ms(latency.sigma_ms)}",
            f"{latency.variation:.0%}",
            _ratio(found.latency_ratio),
        )
        rows.append(cells)
    notes = (
        "One tile at a time, the next when the last has ended (MLPerf SingleStream). CV: coefficient of variation; "
        f"over reference: how many times faster than {speed.reference}.",
    )
    return Rows(title="Latency of one tile", headings=headings, rows=tuple(rows), notes=notes)


def _throughput(speed: SpeedReport) -> Rows:
    headings = ("encoder", "tiles/s", "CV of rounds", "tiles a call", "over reference, 95 %")
    rows = tuple(
        (
            name,
            f"{found.throughput.tiles_per_s:.1f}",
            f"{found.throughput.variation:.0%}",
            f"{found.throughput.batch}",
            _ratio(found.throughput_ratio),
        )
        for name, found in speed.encoders.items()
    )
    notes = (
        f"All tiles at hand (MLPerf Offline); {speed.rounds} rounds in which all encoders took turns. Timed: "
        f"{speed.timed_region}.",
        *(f"{name} ran in {found.runtime}." for name, found in speed.encoders.items()),
        *speed.warnings,
    )
    return Rows(title="Throughput", headings=headings, rows=rows, notes=notes)


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def _ratio(interval: Interval | None) -> str:
    return "reference" if interval is None else interval_text(interval, ".2f", "x")


def _sweeps(report: Report) -> list[Rows]:
    found = []
    for name, sweep in report.sweeps.items():
        headings = ("setting", "tiles/s", "best over this, 95 %", "as good as the best")
        fastest = sorted(sweep.points, key=lambda point: -point.tiles_per_s)[:_SWEPT]
        rounds = len(sweep.best.rounds_tiles_per_s)
        rows = tuple(
            (point.setting.words, f"{point.tiles_per_s:.1f}", _behind(point, rounds), "yes" if point.as_good else "no")
            for point in fastest
        )
        light, words = sweep.lightest, sweep.best.setting.words
        as_good = (
            "" if light == sweep.best else f"; as good, with fewer tiles at once or threads: {light.setting.words}"
        )
        notes = (f"{len(sweep.points)} settings took turns; the best is {words}{as_good}.",)
        found.append(Rows(title=f"Sweep of {name}", headings=headings, rows=rows, notes=notes))
    return found


def _behind(point: SweepPoint, rounds: int) -> str:
    if point.behind_best is None:
        return "best"
    if len(point.rounds_tiles_per_s) < rounds:
        return f"{point.behind_best.estimate:.2f}x, given up"
    return interval_text(point.behind_best, ".2f", "x")


def _cold_starts(report: Report) -> list[Rows]:
    if not report.cold_starts:
        return []
    rows = tuple(
        (
            name,
            f"{found.open_ms:.0f} ms",
            f"{found.first_embedding_ms:.0f} ms",
            "no such cache" if found.cached_first_embedding_ms is None else f"{found.cached_first_embedding_ms:.0f} ms",
            f"{found.peak_memory_bytes / 1e6:.0f} MB",
            "" if found.offline_peak_memory_bytes is None else f"{found.offline_peak_memory_bytes / 1e6:.0f} MB",
        )
        for name, found in report.cold_starts.items()
    )
    headings = ("encoder", "open", "first embedding", "with a compiled-model cache", "peak memory", "with a batch")
    count = next(iter(report.cold_starts.values())).processes
    notes = (
        f"Medians of {count} fresh processes, from opening (hashes checked) to one embedding in memory; the "
        "interpreter's own start is left out, its memory is not. Peak memory: after one tile, and after a call as for "
        "the throughput.",
    )
    return [Rows(title="Cold start and memory", headings=headings, rows=rows, notes=notes)]


def _energies(report: Report) -> list[Rows]:
    if not report.energies:
        return []
    rows = tuple(
        (name, _joules(found), f"{found.watts:.1f} W", found.counter) for name, found in report.energies.items()
    )
    headings = ("encoder", "a thousand tiles, 95 %", "mean power", "counter")
    notes = ("Of the GPU or the CPU packages that computed, idle power and other programs included; by turns.",)
    return [Rows(title="Energy", headings=headings, rows=rows, notes=notes)]


def _joules(energy: Energy) -> str:
    ends = "" if energy.interval is None else f" [{energy.interval.low:.0f}, {energy.interval.high:.0f}]"
    return f"{energy.joules_per_thousand_tiles:.0f} J{ends}"


def _roofline(report: Report) -> list[Rows]:
    if report.roofline is None:
        return []
    rows = tuple(
        (
            name,
            f"{found.gop_per_tile:.3g}",
            found.precision,
            f"{found.gop_per_s:.0f} Gop/s",
            interval_text(found.fraction.scaled(100), ".0f", " %"),
            f"{found.limit_tiles_per_s:.0f} tiles/s",
        )
        for name, found in report.roofline.encoders.items()
    )
    headings = ("encoder", "Gop a tile", "peak of", "reached", "of the peak, 95 %", "at the peak")
    peaks = ", ".join(f"{precision} {gops:.0f}" for precision, gops in report.roofline.peak_gop_per_s.items())
    notes = (f"This machine's peaks, Gop/s: {peaks}. {report.roofline.method}.",)
    return [Rows(title="Roofline", headings=headings, rows=rows, notes=notes)]


def _layers(report: Report) -> list[Rows]:
    if not report.layers:
        return []
    groups = next(iter(report.layers.values())).group_ms.keys()
    rows = tuple(
        (
            name,
            found.runtime,
            f"{found.total_ms / found.batch:.2f} ms",
            *(f"{found.group_share[group]:.0%}" for group in groups),
        )
        for name, found in report.layers.items()
    )
    headings = ("encoder", "profile of", "a tile", *groups)
    notes = ("Layers as the runtime executed and fused them: a block holds its residual and activation.",)
    return [Rows(title="Where the time goes", headings=headings, rows=rows, notes=notes)]


def _paces(report: Report) -> list[Rows]:
    rows = tuple(
        (
            name,
            f"{found.tiles_per_slide:,}",
            f"{found.slide_seconds:.0f} s",
            f"{found.slides_per_hour:.1f}",
            f"{found.needed_tiles_per_s:.0f} tiles/s",
            "YES" if found.keeps_up else "no",
        )
        for name, found in report.paces.items()
    )
    if not rows:
        return []
    headings = ("encoder", "tiles a slide", "a slide", "slides an hour", "the scanner needs", "keeps up")
    notes = tuple(f"{name}: {'; '.join(found.arithmetic)}." for name, found in report.paces.items())
    return [Rows(title="Pace", headings=headings, rows=rows, notes=notes)]
