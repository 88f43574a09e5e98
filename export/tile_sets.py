"""Which tiles calibrate, fit the probes, and judge."""

from collections.abc import Iterator
from dataclasses import dataclass

from atlas_edge.bench.accuracy.tileset import TileSet
from atlas_edge.errors import UsageError
from atlas_edge.export.config import ExportConfig
from atlas_edge.manifest import TilesProvenance
from atlas_edge.quantize.tiles.choose import calibration_pool
from atlas_edge.tiles import TileRecord, TileSource, open_tiles, provenance, select_records, without_split
from atlas_edge.tiles.overlap import check_disjoint, in_first_half

SAMPLE = "synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSets:
    """The tiles of one export.

    Attributes:
        calibration: Tiles to choose from what sets the quantization scales; what was chosen, once it is.
        fit: Labelled tiles for the probes; None where the labels are missing.
        evaluation: What both encoders are compared on; none of its slides is in the other two.
        halved: Whether the tiles had no splits and were parted by slide (or tile, where no slides are known).
    """

    calibration: TileSet
    fit: TileSet | None
    evaluation: TileSet
    halved: bool

    @property
    def synthetic(self) -> bool:
        """Whether a figure rests on synthetic tiles."""
        return self.calibration.source.synthetic or self.evaluation.source.synthetic

    def provenances(self) -> tuple[TilesProvenance, TilesProvenance]:
        """Of calibration and evaluation, for the manifest."""
        return (
            provenance(self.calibration.source, self.calibration.records),
            provenance(self.evaluation.source, self.evaluation.records),
        )


def open_tile_sets(config: ExportConfig) -> TileSets:
    """Open and choose the tiles that `config` names.

    Without `--calib` and `--eval` both come from the synthetic sample; without `--eval` it is the test split of
    `--calib`, or, where it has no splits, half of its slides.

    Raises:
        UsageError: Evaluation tiles without splits but no calibration tiles, or a gate without labels.
        InputError: A tile set cannot be read, or calibration and evaluation share a slide.
    """
    calib = config.calib or config.eval or SAMPLE
    eval_ = config.eval or without_split(calib)
    calibration = open_tiles(calib, role="calibration")
    # Opened once: finding the tissue of a folder of slides takes minutes.
    same = eval_ == calib and not calibration.splits()
    evaluation = calibration if same else open_tiles(eval_, role="evaluation")
    if config.calib is None and config.eval is not None and not calibration.splits():
        raise UsageError(
            f"{config.eval} has no splits: calibrating on the tiles that judge would flatter the result",
            hint="give --calib other tiles",
        )
    halved = config.eval is None and calibration.split is None and evaluation.split is None
    first = in_first_half(calibration.records(), seed=config.seed) if halved else None

    def usable(source: TileSource, *, fitted: bool) -> Iterator[TileRecord]:
        return (record for record in source.records() if first is None or first(record) == fitted)

    fit_records = select_records(usable(calibration, fitted=True), config.fit_limit, seed=config.seed)
    limits = {"limit": config.calib_limit, "fit_limit": config.fit_limit, "seed": config.seed}
    pool = calibration_pool(usable(calibration, fitted=True), **limits)
    eval_records = select_records(usable(evaluation, fitted=False), config.eval_limit, seed=config.seed)
    check_disjoint((calibration, [*fit_records, *pool]), (evaluation, eval_records))
    labelled = all(record.label is not None for record in (*fit_records, *eval_records)) and bool(fit_records)
    if config.max_drop_pp is not None and not labelled:
        raise UsageError(
            "--max-drop needs labels on the calibration and the evaluation tiles",
            hint="give labelled tiles (class folders or a label column), or leave --max-drop out",
        )

    def tiles(source: TileSource, records: list[TileRecord]) -> TileSet:
        return TileSet(source=source, records=tuple(records), fit=config.tile_fit)

    return TileSets(
        calibration=tiles(calibration, pool),
        fit=tiles(calibration, fit_records) if labelled else None,
        evaluation=tiles(evaluation, eval_records),
        halved=halved,
    )
