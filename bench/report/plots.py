"""A report's plots as inline SVG: nothing is fetched, and the text can be searched."""

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_edge.bench.report.schema import Report
from atlas_edge.cli import require_module

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_WIDTH, _HEIGHT = 6.4, 3.4
# Times further apart than this factor are shown on a logarithmic axis: one outlier would squeeze all others together.
_WIDE_SPREAD = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One plot: its title, the `<svg>` element, and what it shows in words for who cannot see it."""

    title: str
    svg: str
    words: str


def report_plots(report: Report) -> list[Plot]:
    """Every plot that the report has the figures for.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    require_module("matplotlib", extra="report")
    makers = (_latency, _throughput_by_batch, _cosines, _accuracy_by_throughput)
    return [plot for plot in (make(report) for make in makers) if plot is not None]


def _latency(report: Report) -> Plot | None:
    if report.speed is None:
        return None
    figure, axes = _canvas()
    for colour, (name, speed) in zip(_cycle(), report.speed.encoders.items(), strict=False):
        samples = np.sort(speed.latency.samples_ms)
        share = np.arange(1, len(samples) + 1) / len(samples)
        axes.step(samples, 100 * share, where="post", color=colour, label=name)
        axes.plot(speed.latency.p99_ms, 99, "v", color=colour, markersize=5)
    axes.set(xlabel="latency of one tile, ms", ylabel="tiles at most this slow, %", ylim=(0, 101))
    everything = [value for speed in report.speed.encoders.values() for value in speed.latency.samples_ms]
    if max(everything) > _WIDE_SPREAD * min(everything):
        axes.set_xscale("log")
        _plain_log_ticks(axes)
    axes.legend(loc="best", fontsize=8)
    words = "; ".join(
        f"{name}: median {speed.latency.p50_ms:.1f} ms, p99 {speed.latency.p99_ms:.1f} ms"
        for name, speed in report.speed.encoders.items()
    )
    return _plot("Latency distribution (triangle: p99)", figure, words)


def _throughput_by_batch(report: Report) -> Plot | None:
    if not report.sweeps:
        return None
    from matplotlib.lines import Line2D

    figure, axes = _canvas()
    words = []
    # Colour tells the encoder, the line its threads and streams: a legend of every pair of them would hide the curves.
    encoders: dict[str, Line2D] = {}
    settings: dict[str, Line2D] = {}
    for colour, (name, sweep) in zip(_cycle(), report.sweeps.items(), strict=False):
        encoders[name] = Line2D([], [], color=colour, marker="o")
        lines: dict[tuple[int, int, str], list[tuple[int, float]]] = {}
        for point in sweep.points:
            key = (point.setting.threads, point.setting.streams, point.setting.words.partition(", ")[2])
            lines.setdefault(key, []).append((point.setting.batch, point.tiles_per_s))
        for (threads, streams, label), points in sorted(lines.items()):
            look: dict[str, Any] = {"linestyle": "-" if streams == 1 else "--", "linewidth": 1.0 + 0.6 * (threads - 1)}
            axes.plot(*zip(*sorted(points), strict=True), color=colour, marker="o", markersize=4, **look)
            settings[label] = Line2D([], [], color="0.4", **look)
        axes.plot(sweep.best.setting.batch, sweep.best.tiles_per_s, "*", color=colour, markersize=14)
        words.append(f"{name}: best {sweep.best.tiles_per_s:.0f} tiles/s with {sweep.best.setting.words}")
    axes.set_xscale("log", base=2)
    batches = sorted({point.setting.batch for sweep in report.sweeps.values() for point in sweep.points})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(xlabel="batch, tiles", ylabel="throughput, tiles/s", ylim=(0, None))
    legend = encoders | settings
    figure.legend(list(legend.values()), list(legend), fontsize=8, loc="outside upper center", ncols=2, frameon=False)
    return _plot("Throughput against batch (star: best)", figure, "; ".join(words))


def _cosines(report: Report) -> Plot | None:
    found = {} if report.accuracy is None else report.accuracy.candidates
    shown = {name: np.asarray(one.cosines) for name, one in found.items() if one.cosines}
    if not shown:
        return None
    figure, axes = _canvas()
    # 1 - cosine on a logarithmic axis: precisions differ by orders of magnitude. Equal embeddings go to the left end.
    distances = {name: np.maximum(1 - cosines, 1e-7) for name, cosines in shown.items()}
    low = min(float(values.min()) for values in distances.values())
    high = max(float(values.max()) for values in distances.values())
    edges = np.geomspace(low * 0.8, max(high * 1.25, low * 2), 50)
    for colour, (name, values) in zip(_cycle(), distances.items(), strict=False):
        axes.hist(values, bins=edges.tolist(), color=colour, alpha=0.55, label=name)
    axes.set(xscale="log", xlabel="1 - cosine to the reference", ylabel="tiles")
    _plain_log_ticks(axes)
    axes.legend(fontsize=8)
    words = "; ".join(f"{name}: median cosine {np.median(cosines):.5f}" for name, cosines in shown.items())
    return _plot("Embedding agreement, tile by tile", figure, words)


def _accuracy_by_throughput(report: Report) -> Plot | None:
    if report.accuracy is None or report.speed is None:
        return None
    scores = report.accuracy.scores
    names = [name for name in report.speed.encoders if name in scores and scores[name].linear is not None]
    if len(names) < 2:
        return None
    figure, axes = _canvas()
    for colour, name in zip(_cycle(), names, strict=False):
        speed = report.speed.encoders[name].throughput
        drop = None if name not in report.accuracy.candidates else report.accuracy.candidates[name].drop("linear")
        score = scores[name].linear if drop is None else drop.candidate_score
        assert score is not None
        half = None if drop is None else [[drop.high_pp - drop.drop_pp], [drop.drop_pp - drop.low_pp]]
        spread = speed.variation * speed.tiles_per_s
        axes.errorbar(speed.tiles_per_s, 100 * score, xerr=spread, yerr=half, fmt="o", color=colour, label=name)
    axes.set(xlabel="throughput, tiles/s (bar: ± σ of the rounds)", ylabel="balanced accuracy, %", xlim=(0, None))
    # What is fast stands on the right; "best" knows nothing of error bars.
    axes.legend(loc="lower left", fontsize=8)
    words = "bars up and down: 95 % interval of the drop against the reference; the reference has none"
    return _plot("Accuracy against throughput", figure, words)


def _canvas() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _plain_log_ticks(axes: "Axes") -> None:
    """Labels at 1, 2 and 5 of each decade, or at 1 where there are many: matplotlib's own run into one another."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _cycle() -> list[str]:
    return list(_COLOURS) * 8


def _plot(title: str, figure: "Figure", words: str) -> Plot:
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: two reports of equal figures are equal files. Ids carry the title, so that several
    # plots on one page do not share a clip path.
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return Plot(title=title, svg=_without_addresses(svg), words=words)


def _without_addresses(svg: str) -> str:
    """Drop the metadata block, the only part besides namespaces that names other hosts."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
