"""Reports made by hand, so that every figure in them is known."""

import numpy as np

from atlas_edge.bench.accuracy.agreement import embedding_agreement, tile_cosines
from atlas_edge.bench.accuracy.drop import AccuracyDrop
from atlas_edge.bench.accuracy.measure import AccuracyReport, CandidateAccuracy, EncoderScores
from atlas_edge.bench.encoders import EncoderFacts
from atlas_edge.bench.interval import Interval
from atlas_edge.bench.judge.budgets import Budget, Budgets, judged_figures, run_gate
from atlas_edge.bench.machine import Machine
from atlas_edge.bench.report.schema import Report
from atlas_edge.bench.speed.figures import EncoderSpeed, Latency, SpeedReport, Throughput
from atlas_edge.manifest import TilesProvenance
from atlas_edge.spec import EncoderSpec

SPEC = EncoderSpec(
    name="tiny",
    architecture="vit_tiny",
    embed_dim=8,
    tile_px=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    pooling="cls",
    patch=8,
)
MACHINE = Machine(
    cpu="test", physical_cores=2, logical_cores=2, memory_bytes=1, system="Linux", python="3.11", gpus=(), versions={}
)


def facts(*, reference: bool = False, size_bytes: int = 1_000_000) -> EncoderFacts:
    return EncoderFacts(
        given="x",
        runtime="r",
        spec=SPEC,
        target=None,
        precision="fp32",
        size_bytes=size_bytes,
        is_reference=reference,
        sha256="abc123",
    )


def drop(estimate: float, half: float, *, method: str = "linear") -> AccuracyDrop:
    return AccuracyDrop(
        method="knn" if method == "knn" else "linear",
        refitted=False,
        reference_score=0.9,
        candidate_score=0.9 - estimate / 100,
        drop_pp=estimate,
        low_pp=estimate - half,
        high_pp=estimate + half,
        flips=0.02,
        flips_low=0.01,
        flips_high=0.03,
        reference_calibration_error=0.05,
        candidate_calibration_error=0.06,
        tiles=100,
        units=100,
        unit="tile",
        classes=("a", "b"),
    )


def speed(tiles_per_s: float, ratio: float | None) -> EncoderSpeed:
    latency = Latency(
        p50_ms=10, p90_ms=11, p95_ms=12, p99_ms=13, mean_ms=10.5, sigma_ms=1, variation=0.1, min_ms=9, max_ms=14,
        samples_ms=(9, 10, 11, 14),
    )  # fmt: skip
    interval = None if ratio is None else Interval(estimate=ratio, low=0.9 * ratio, high=1.1 * ratio, units=6)
    rounds = (tiles_per_s,) * 4
    throughput = Throughput(tiles_per_s=tiles_per_s, batch=8, variation=0.05, rounds_tiles_per_s=rounds)
    return EncoderSpeed(
        runtime="r", latency=latency, throughput=throughput, latency_ratio=interval, throughput_ratio=interval,
        warmup_calls=20, steady=True,
    )  # fmt: skip


def report(
    *,
    drop_pp: float = 0.5,
    half: float = 0.4,
    noise: float = 0.05,
    ratio: float = 2.0,
    budget: Budget | None = None,
    fingerprint: str = "f",
) -> Report:
    """A reference `ref` and a candidate `int8` on 100 tiles."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 8)).astype(np.float32)
    y = x + noise * rng.normal(size=x.shape).astype(np.float32)
    agreement = embedding_agreement(x, y)
    candidate = CandidateAccuracy(
        agreement=agreement,
        cosines=tuple(float(value) for value in tile_cosines(x, y)),
        worst_tiles=tuple(f"tile{index}" for index in agreement.worst),
        cka=agreement.cka,
        drops=(drop(drop_pp, half), drop(drop_pp, half, method="knn")),
        robustness_drop=None,
        stress=(),
    )
    scores = EncoderScores(linear=0.9, knn=0.8, calibration_error=0.05, robustness=None, plism=None)
    accuracy = AccuracyReport(
        reference="ref",
        scores={"ref": scores, "int8": scores},
        candidates={"int8": candidate},
        notes=("a note",),
        encoding_s=2.0,
        statistics_s=1.0,
    )
    timed = SpeedReport(
        reference="ref",
        timed_region="all",
        encoders={"ref": speed(50, None), "int8": speed(50 * ratio, ratio)},
        rounds=6,
        warnings=("int8: a warning",),
    )
    return Report(
        created_utc="2026-11-24T00:00:00+00:00",
        command=("atlas-bench", "accuracy"),
        machine=MACHINE,
        encoders={"ref": facts(reference=True), "int8": facts()},
        evaluation=TilesProvenance(name="set <1>", kind="class folders", tiles=100, fingerprint=fingerprint),
        accuracy=accuracy,
        speed=timed,
        gate=None if budget is None else run_gate(Budgets(default=budget), judged_figures(accuracy, timed)),
    )
