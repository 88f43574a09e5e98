"""Plans measured on their target, one after the other, each result kept on disk."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.tileset import TileSet, embed_tiles
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.manifest import TilesProvenance
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.quantize.backend import Job, measured_backend
from atlas_edge.quantize.options import Limits
from atlas_edge.quantize.paths import path_sentence
from atlas_edge.quantize.plan import Plan
from atlas_edge.quantize.search.accuracy import PlanAccuracy, plan_accuracy, recheck
from atlas_edge.quantize.search.journal import Journal, code_fingerprint, key_of
from atlas_edge.quantize.search.stored_embeddings import RememberingEncoder
from atlas_edge.quantize.search.timing import PlanSpeed, race
from atlas_edge.quantize.tiles.choose import CalibrationChoice, choose_calibration
from atlas_edge.quantize.tiles.convergence import watch_ranges
from atlas_edge.spec import Precision, Target
from atlas_edge.system import hardware
from atlas_edge.system.atomic import write_atomic
from atlas_edge.tiles import TileRecord, open_tiles, provenance, select_records
from atlas_edge.tiles.overlap import check_disjoint
from atlas_edge.tiles.sample import draw_rank

Say = Callable[[str], None]

REFERENCE = "fp32"
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(Limits):
    """What is measured, and on what.

    Attributes:
        model: Registry name, model folder or `hf-hub:` name.
        tiles: Tiles that calibrate and fit the probes.
        evaluation: Tiles that judge.
        target: Whose runtime measures.
        out: Final output; the journal lies beside it.
    """

    model: str
    tiles: str
    evaluation: str
    target: Target
    out: Path


class PlanBench:
    """A model, its tiles, and what is known of its plans so far.

    Everything that is measured goes into a journal beside `config.out` at once; a killed run that is started again with
    the same configuration measures only what is missing.

    Args:
        config: What to measure.
        say: Where a line of progress goes.
        confirm: Keep two thirds of the slides (or tiles, where no slides are known) that judge for `recheck`.

    Attributes:
        material: What plans are built from.
        fit: Tiles that fit the probe.
        evaluation: Tiles that plans are measured on.
        confirmation: Tiles that `recheck` judges on; none of their slides is among the others with `confirm`.
        choice: Tiles that set the scales.

    Raises:
        InputError: A model or tile cannot be read, or calibration and evaluation share a slide.
    """

    def __init__(self, config: MeasureConfig, say: Say, *, confirm: bool = False) -> None:
        self.config = config
        self.backend = measured_backend(config.target)
        self.say = say
        self.fit, self.evaluation = _tile_sets(config)
        self.confirmation = self.evaluation
        if confirm:
            chosen, kept = parted(self.evaluation.records, seed=config.seed)
            self.evaluation, self.confirmation = (
                TileSet(source=self.confirmation.source, records=records, fit=config.tile_fit)
                for records in (chosen, kept)
            )
        self.model = load_model(config.model, seed=config.seed)
        tile_sets = (self.fit, self.evaluation, self.confirmation)
        self.journal = Journal(config.out, _context(config, self.model, tile_sets))
        if self.journal.resumed:
            say(f"going on with {self.journal.resumed} results of an earlier run")
        graph = _reference_graph(self.model, self.journal.folder)
        self.choice = self._choose(graph)
        pixels = self.choice.pixels
        self.material = Job(
            model=self.model,
            graph=graph,
            calibration=[pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)],
            threads=config.threads,
        )
        self.reference = RememberingEncoder(
            lambda: self.backend.open_reference(self.material),
            self.model.spec,
            runtime=f"{config.target} in full precision",
            path=self.journal.folder / "reference.embeddings",
        )
        self._expected: NDArray[np.float32] | None = None
        self._fitted: NDArray[np.float32] | None = None

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be measured, or agreement only."""
        return self.fit.labels is not None and self.evaluation.labels is not None

    def provenances(self) -> tuple[TilesProvenance, TilesProvenance]:
        """Of the tiles that set the scales, and of those that judge."""
        return (
            provenance(self.fit.source, self.choice.records),
            provenance(self.evaluation.source, self.evaluation.records),
        )

    def known(self, plan: Plan) -> PlanAccuracy | None:
        """What an earlier call or run measured of a plan."""
        found = self.journal.get(f"accuracy {_key(plan)}")
        whole = plan.recipe is None or self._folder(plan).is_dir()
        return PlanAccuracy.model_validate(found) if found is not None and whole else None

    def measure(self, plan: Plan) -> PlanAccuracy:
        """Build a plan, run it on the evaluation tiles, and compare with full precision."""
        found = self.known(plan)
        if found is None:
            expected, fitted = self._reference_embeddings()
            encoder = self.open(plan)
            embeddings = embed_tiles({"plan": encoder}, self.evaluation)["plan"]
            encoder.close()
            found = plan_accuracy(
                expected, embeddings, fitted=fitted, fit=self.fit, evaluation=self.evaluation, seed=self.config.seed
            )
            self.journal.put(f"accuracy {_key(plan)}", found.model_dump(mode="json"))
        return found

    def open(self, plan: Plan) -> Encoder:
        """The encoder of a plan, built if need be."""
        if plan.precision is Precision.FP32:
            return self.backend.open_reference(self.material)
        job, folder = replace(self.material, precision=plan.precision, recipe=plan.recipe), self._folder(plan)
        if not folder.is_dir():
            partial = folder.with_name(folder.name + ".partial")
            partial.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=partial.parent) as scratch:
                quantized = self.backend.quantize(job, Path(scratch))
                self.backend.write(job, quantized, partial)
            path = path_sentence(quantized.quantization)
            if path is not None:
                self.say(f"{plan.name}: {path}")
            partial.rename(folder)
        return self.backend.open_written(job, folder)

    def race(self, plans: Sequence[Plan]) -> dict[str, PlanSpeed]:
        """Speed of plans by name (no two alike), all taking turns in one run; full precision is among them."""
        names = [plan.name for plan in plans]
        assert len(set(names)) == len(names), names
        key = f"speed {key_of([_key(plan) for plan in plans])}"
        known = self.journal.get(key)
        if known is None:
            self.say(f"speed: {', '.join(names)} take turns")
            encoders = {plan.name: self.open(plan) for plan in plans}
            tiles = np.concatenate(self.material.calibration)[: 4 * BATCH]
            raced = race(encoders, tiles, reference=REFERENCE)
            for encoder in encoders.values():
                encoder.close()
            known = {name: speed.model_dump(mode="json") for name, speed in raced.items()}
            self.journal.put(key, known)
        return {name: PlanSpeed.model_validate(value) for name, value in known.items()}

    def recheck(self, plan: Plan) -> PlanAccuracy:
        """Open a plan again from its file and judge it on `confirmation`, by the report of `atlas-bench accuracy`."""
        key = f"check {_key(plan)}"
        known = self.journal.get(key)
        if known is None:
            self._reference_embeddings()
            encoder = self.open(plan)
            fit = self.fit if self.labelled else None
            found = recheck(self.reference, encoder, evaluation=self.confirmation, fit=fit)
            encoder.close()
            known = found.model_dump(mode="json")
            self.journal.put(key, known)
        return PlanAccuracy.model_validate(known)

    def _choose(self, graph: Path) -> CalibrationChoice:
        config = self.config
        choice = choose_calibration(
            self.fit.source,
            self.fit.records,
            limit=config.calib_limit,
            tile_px=self.model.spec.tile_px,
            fit=config.tile_fit,
            seed=config.seed,
        )
        enough = self.journal.get("calibration tiles")
        if enough is None:
            found = watch_ranges(graph, choice.pixels)
            self.say(f"calibration: {found.sentence()}")
            enough = found.enough(fitted=True)
            self.journal.put("calibration tiles", enough)
        return choice.first(int(enough))

    def _reference_embeddings(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        if self._expected is None:
            started = time.monotonic()
            self._expected = embed_tiles({"reference": self.reference}, self.evaluation)["reference"]
            if self.labelled:
                self._fitted = embed_tiles({"reference": self.reference}, self.fit)["reference"]
            count = len(self._expected) + (0 if self._fitted is None else len(self._fitted))
            self.say(f"reference: {count} tiles in full precision, {time.monotonic() - started:.0f} s")
            self.reference.rest()
        return self._expected, self._fitted

    def _folder(self, plan: Plan) -> Path:
        return self.journal.folder / f"plan-{_key(plan)}"


def parted(records: Sequence[TileRecord], *, seed: int = 0) -> tuple[tuple[TileRecord, ...], tuple[TileRecord, ...]]:
    """A third of the slides (or tiles, where no slides are known) of every class to choose by, the others to confirm.

    Raises:
        InputError: Fewer than three slides.
    """
    label_of: dict[str, str] = {}
    for record in records:
        label_of.setdefault(record.group or record.id, str(record.label))
    units = sorted(label_of, key=lambda unit: (label_of[unit], draw_rank(seed, unit)))
    if len(units) < 3:
        raise InputError(
            f"the tiles that judge are of {len(units)} slides: some choose a plan, others confirm it",
            hint="give --eval tiles of three slides or more",
        )
    choosing = set(units[1::3])
    return (
        tuple(record for record in records if (record.group or record.id) in choosing),
        tuple(record for record in records if (record.group or record.id) not in choosing),
    )


def _tile_sets(config: MeasureConfig) -> tuple[TileSet, TileSet]:
    source, judged = open_tiles(config.tiles, role="calibration"), open_tiles(config.evaluation, role="evaluation")
    records = tuple(select_records(source, config.fit_limit, seed=config.seed))
    others = tuple(select_records(judged, config.eval_limit, seed=config.seed))
    check_disjoint((source, records), (judged, others))
    return (
        TileSet(source=source, records=records, fit=config.tile_fit),
        TileSet(source=judged, records=others, fit=config.tile_fit),
    )


def _context(config: MeasureConfig, model: LoadedModel, tile_sets: Sequence[TileSet]) -> dict[str, Any]:
    return {
        "model": model.provenance.model_dump(mode="json"),
        "encoder": model.spec.model_dump(mode="json"),
        "tiles": [provenance(tiles.source, tiles.records).fingerprint for tiles in tile_sets],
        "target": config.target.value,
        "calib_limit": config.calib_limit,
        "tile_fit": config.tile_fit,
        "threads": config.threads,
        "seed": config.seed,
        "cpu": hardware.cpu().name,
        "versions": hardware.versions(),
        "code": code_fingerprint(measured_backend(config.target)),
    }


def _reference_graph(model: LoadedModel, folder: Path) -> Path:
    from atlas_edge.models.graph import export_onnx

    path = folder / "reference.onnx"
    if not path.is_file():
        scratch = folder / "exporting"
        scratch.mkdir(exist_ok=True)
        export_onnx(model.module, model.spec, scratch / path.name)
        for part in scratch.glob(f"{path.name}?*"):  # the weights of a large graph lie beside it
            part.replace(folder / part.name)
        write_atomic(path, (scratch / path.name).read_bytes())
    return path


def _key(plan: Plan) -> str:
    return key_of(plan.model_dump(mode="json"))
