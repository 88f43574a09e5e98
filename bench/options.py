"""What the commands of `atlas-bench` can be asked; nothing heavy is imported here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le
from cyclopts import Parameter

from atlas_edge.options import Flag, Limit, Options, Seed, Threads, TileFit

# A 15 x 15 mm area took 156 s on a NanoZoomer S360 and 183-210 s on a Pannoramic 1000 (Genis 2021): the fastest is
# the default, so that "keeps up" holds for the others too.
SCANNER_SECONDS = 156.0
SLIDE_MM2 = 225.0
MPP = 0.5


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(Options):
    """What `atlas-bench speed` measures.

    Attributes:
        batch: Tiles a call in the throughput scenario, rounded up to whole batches of an encoder's graph.
        rounds: Turns of every encoder.
        block_seconds: How long a turn lasts, at least.
        threads: Inference threads; the runtime's own choice when left out.
        device: What bundles run on, as their runtime calls it: GPU, NPU, AUTO (OpenVINO), cuda:1, directml (ONNX
            Runtime); models in PyTorch stay on the processor.
        sweep: Measure throughput over batch, streams and threads, and name the best setting.
        cold_start: Measure opening to first embedding in fresh processes, with and without compiled-model cache, and
            peak memory.
        roofline: Measure this machine's matrix-product peaks, the encoders' fraction of them, and time by layer.
        scanner_seconds: Seconds that a scanner takes for one slide.
        slide_mm2: Scanned area of a slide, mm².
        mpp: µm per pixel of the tiles; the encoder's own, or 0.5.
    """

    batch: int = 8
    rounds: int = 10
    block_seconds: float = 0.5
    threads: Threads = None
    device: str | None = None
    sweep: Flag = False
    cold_start: Flag = False
    roofline: Flag = False
    scanner_seconds: float = SCANNER_SECONDS
    slide_mm2: float = SLIDE_MM2
    mpp: float | None = None


@dataclass(frozen=True, kw_only=True)
class Budget(Options):
    """What a candidate may cost; None is not judged.

    Attributes:
        max_drop_pp: Budget of the linear probe's drop in balanced accuracy, percentage points.
        max_knn_drop_pp: Budget of the kNN probe's drop, percentage points.
        max_flip_percent: Budget of the linear probe's predictions that change, per cent.
        min_cosine: Least cosine to the reference, at the 1st percentile of the tiles; below 368 tiles nothing passes.
        max_robustness_drop: Budget of the robustness index lost, 0-1; needs classes, slides and centres.
        min_throughput_ratio: Least throughput over the reference's; needs --speed.
    """

    max_drop_pp: Annotated[float | None, Ge(0), Parameter(name="--max-drop")] = None
    max_knn_drop_pp: Annotated[float | None, Ge(0), Parameter(name="--max-knn-drop")] = None
    max_flip_percent: Annotated[float | None, Ge(0), Le(100), Parameter(name="--max-flip")] = None
    min_cosine: Annotated[float | None, Ge(-1), Le(1)] = None
    max_robustness_drop: Annotated[float | None, Ge(0), Le(1)] = None
    min_throughput_ratio: Annotated[float | None, Gt(0)] = None

    @property
    def limits(self) -> dict[str, float]:
        """What is judged."""
        return {name: limit for name, limit in vars(self).items() if limit is not None}


@dataclass(frozen=True, kw_only=True)
class AccuracyTiles(Options):
    """On which tiles `atlas-bench accuracy` compares.

    Attributes:
        eval: Tiles to compare on; the test split where there are splits.
        fit: Labelled tiles to fit the probes on; the train split of --eval when left out.
        limit: Most tiles to compare on, balanced over the labels; of registered scans the same places on each.
        fit_limit: Most tiles to fit on, balanced over the labels.
        tile_fit: What to do with tiles of another size than an encoder takes.
    """

    eval: str
    fit: str | None = None
    limit: Annotated[int | None, Ge(2)] = None
    fit_limit: Limit = None
    tile_fit: TileFit = "exact"


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(Options):
    """What `atlas-bench accuracy` measures.

    Attributes:
        stress_tiles: Tiles for the stain and scanner stress test; 0 leaves it out.
        robustness_k: Neighbours of the robustness index (11 Camelyon, 61 TCGA, 46 Tolkach).
        robustness_paired: Neighbours within paired 2 x 2 subsets, pooled, as PathoROB has them on TCGA; the subsets
            that the tile set names, or all that its classes and centres allow.
        seed: Seed of every bootstrap.
    """

    stress_tiles: Annotated[int, Ge(0)] = 48
    robustness_k: Annotated[int, Ge(1)] = 11
    robustness_paired: Flag = False
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Where the report of `atlas-bench accuracy` goes, and what it shows.

    Attributes:
        report: Folder to write report.json, report.md, report.html, junit.xml and benchmark lists into.
        pictures: Show the worst tiles in report.html.
        keep_paths: Write paths, and the names of tiles, classes and tile sets, into the report. They are left out
            otherwise: in a lab they name patients.
        overwrite: Replace that folder where it exists.
    """

    report: Path | None = None
    pictures: bool = True
    keep_paths: Flag = False
    overwrite: Flag = False


@dataclass(frozen=True, kw_only=True)
class SlideBenchOptions(Options):
    """How `atlas-bench slide` runs.

    Attributes:
        tiles: Tiles a turn.
        rounds: Turns of everything.
        threads: Decode threads.
        streams: Calls side by side in OpenVINO; chosen by the cores when left out.
        device: What bundles run on, as their runtime calls it; chosen by the runtime when left out.
        batch: Tiles a batch.
        mpp: µm per pixel of a slide that does not say it.
        tile_mpp: µm per pixel of tiles; the bundle's own when left out.
        scanner_s: Seconds that the scanner takes for a slide; 156 s for 15 x 15 mm when left out.
    """

    tiles: int = 256
    rounds: int = 4
    threads: Annotated[int, Ge(1), Le(64)] = 1
    streams: Annotated[int | None, Ge(1)] = None
    device: str | None = None
    batch: Annotated[int, Ge(1)] = 64
    mpp: Annotated[float | None, Gt(0)] = None
    tile_mpp: Annotated[float | None, Gt(0)] = None
    scanner_s: Annotated[float | None, Gt(0), Parameter(name="--scanner-seconds")] = None
