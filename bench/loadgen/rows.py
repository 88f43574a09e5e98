"""A LoadGen report as tables."""

from atlas_edge.bench.loadgen.run import RULE_S, TEST01_MARGIN, LoadGenReport, Scenario
from atlas_edge.bench.report.rows import Rows


def loadgen_rows(report: LoadGenReport) -> list[Rows]:
    """What LoadGen measured, and whether accuracy holds while it does."""
    speed = tuple((name, *_speed(scenario)) for name, scenario in report.scenarios.items())
    accuracy = tuple((name, *_accuracy(scenario)) for name, scenario in report.scenarios.items())
    rule = "" if report.seconds >= RULE_S else f" MLPerf's rules ask for {RULE_S:.0f} s."
    return [
        Rows(
            title=f"MLPerf LoadGen {report.loadgen}: performance mode",
            headings=("scenario", "LoadGen's verdict", "tiles", "tiles/s", "latency p50", "p90", "p99"),
            rows=speed,
            notes=(
                f"{report.runtime}. Runs of {report.seconds:g} s and more.{rule} SingleStream: one tile after the "
                "other, tiles/s by the mean latency. Timed: uint8 tiles in memory to float32 embeddings in memory.",
            ),
        ),
        Rows(
            title="Accuracy mode, and TEST01",
            headings=(
                "scenario", "verdict", "cosine to full precision, median", "worst",
                "TEST01: worst cosine to accuracy mode",
                "embeddings compared", "throughput over performance mode",
            ),
            rows=accuracy,
            notes=(
                "Passes where accuracy mode is as accurate as selftest asks for, and what is computed while timed is "
                f"the same. MLPerf also wants TEST01 within {TEST01_MARGIN:.0%} of performance mode: that is not "
                "judged here, where other programs may run.",
            ),
        ),
    ]  # fmt: skip


def _speed(scenario: Scenario) -> tuple[str, ...]:
    found = scenario.performance
    latency = ("", "", "") if found.latency_ms is None else tuple(f"{value:.2f} ms" for value in found.latency_ms)
    return ("VALID" if found.valid else "INVALID", str(found.tiles), f"{found.tiles_per_s:.1f}", *latency)


def _accuracy(scenario: Scenario) -> tuple[str, ...]:
    return (
        "PASS" if scenario.passed else "FAIL",
        f"{scenario.accuracy.cosine_median:.5f}",
        f"{scenario.accuracy.cosine_worst:.4f}",
        f"{scenario.test01_worst:.6f}",
        str(scenario.test01_tiles),
        f"{scenario.test01_ratio:.2f}x",
    )
