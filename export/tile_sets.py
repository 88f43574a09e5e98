"""Which tiles calibrate, fit the probes, and judge."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atlas_edge.bench.tileset import TileSet
from atlas_edge.errors import UsageError
from atlas_edge.export.config import ExportConfig
from atlas_edge.manifest import TilesProvenance
from atlas_edge.tiles import TileRecord, TileSource, open_tiles, provenance, select_records

SAMPLE = "synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSets:
    """The tiles of one export.

    Attributes:
        calibration: Sets the quantization scales.
        fit: Labelled tiles for the probes; None where the labels are missing.
        evaluation: What both encoders are compared on.
        overlap: Slides (or tiles, where no slides are known) that are in both calibration and evaluation.
    """

    calibration: TileSet
    fit: TileSet | None
    evaluation: TileSet
    overlap: int

    @property
    def synthetic(self) -> bool:
        """Whether a figure rests on synthetic tiles."""
        return self.calibration.source.synthetic or self.evaluation.source.synthetic

    def provenances(self) -> tuple[TilesProvenance, TilesProvenance]:
        """Of calibration and evaluation, for the manifest."""
        calibration = provenance(self.calibration.source, self.calibration.records)
        evaluation = provenance(self.evaluation.source, self.evaluation.records)
        return calibration.model_copy(update={"also_in_evaluation": self.overlap > 0}), evaluation


def open_tile_sets(config: ExportConfig) -> TileSets:
    """Open and choose the tiles that `config` names.

    Without `--calib` and `--eval` both come from the synthetic sample; without `--eval` it is the test split of
    `--calib`, or all of it where it has no splits.

    Raises:
        UsageError: Evaluation tiles without splits but no calibration tiles, or a gate without labels.
        InputError: A tile set cannot be read.
    """
    calib = config.calib or config.eval or SAMPLE
    eval_ = config.eval or (calib if Path(calib).exists() else calib.partition("@")[0])
    calibration, evaluation = open_tiles(calib, role="calibration"), open_tiles(eval_, role="evaluation")
    if config.calib is None and config.eval is not None and not calibration.splits():
        raise UsageError(
            f"{config.eval} has no splits: calibrating on the tiles that judge would flatter the result",
            hint="give --calib other tiles",
        )
    fit_records = select_records(calibration, config.fit_limit, seed=config.seed)
    eval_records = select_records(evaluation, config.eval_limit, seed=config.seed)
    labelled = all(record.label is not None for record in (*fit_records, *eval_records)) and bool(fit_records)
    if config.max_drop_pp is not None and not labelled:
        raise UsageError(
            "--max-drop needs labels on the calibration and the evaluation tiles",
            hint="give labelled tiles (class folders or a label column), or leave --max-drop out",
        )
    one_source = (calibration.name, calibration.kind) == (evaluation.name, evaluation.kind)
    shared = _slides(fit_records) & _slides(eval_records) if one_source else set()

    def tiles(source: TileSource, records: list[TileRecord]) -> TileSet:
        return TileSet(source=source, records=tuple(records), fit=config.tile_fit)

    return TileSets(
        calibration=tiles(calibration, select_records(fit_records, config.calib_limit, seed=config.seed)),
        fit=tiles(calibration, fit_records) if labelled else None,
        evaluation=tiles(evaluation, eval_records),
        overlap=len(shared),
    )


def _slides(records: Iterable[TileRecord]) -> set[str]:
    return {record.group or record.id for record in records}
