"""The main job: load -> calibrate -> quantize -> build -> verify -> bench, into one bundle."""

import shutil
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from atlas_edge.bench.judge.gate import Verdict
from atlas_edge.bench.selftest.run import add_deployed, selftest_tiles, write_selftest
from atlas_edge.bench.speed.timing import SpeedReport, paired_speed
from atlas_edge.bundle import MANIFEST, write_manifest
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.export.backends.base import Built, ExportBackend, backend_of
from atlas_edge.export.calibrate import calibrate
from atlas_edge.export.compare import Verification, compare_with_reference, embed_compared
from atlas_edge.export.config import ExportConfig
from atlas_edge.export.report.model_card import model_card
from atlas_edge.export.report.page import report_page
from atlas_edge.export.report.summary import report_json, report_markdown
from atlas_edge.export.steps import Steps
from atlas_edge.export.tile_sets import TileSets, open_tile_sets
from atlas_edge.manifest import Manifest
from atlas_edge.models.graph import export_onnx, largest_difference, onnx_bytes
from atlas_edge.models.load import LoadedModel, free_weights, load_model
from atlas_edge.quantize.backend import Job
from atlas_edge.quantize.finetune.trained_ranges import ranges_of, recipe_of_ranges
from atlas_edge.quantize.paths import path_sentence
from atlas_edge.runtimes.plain import plain_runtime_notice
from atlas_edge.spec import Precision
from atlas_edge.system import hardware
from atlas_edge.system.atomic import atomic_folder, check_vacant
from atlas_edge.unnamed import class_numbers, command_without_paths, tile_number, unnamed_tiles

STEPS = 6
# Float32 in two runtimes differs by rounding only; more means that the graph is not the model.
_GRAPH_TOLERANCE = 1e-5
_CHECKED_TILES = 4
_BENCH_TILES = 64
_BENCH_ROUNDS, _BENCH_BLOCK_SECONDS = 4, 0.3
# Tiles a call: enough that every core has some waiting, as when a slide is embedded.
_BENCH_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export made and measured.

    Attributes:
        folder: The bundle.
        manifest: As written into it.
        verification: Agreement and drop.
        speed: Reference, bundle and PyTorch taking turns; None where it was not asked for.
        size_bytes: Of the bundle's model files.
        reference_size_bytes: Of the full-precision graph.
        not_run: Why the deployed file itself was not run here.
        seconds: Wall time of each step.
        synthetic: Whether a figure rests on synthetic tiles.
    """

    folder: Path
    manifest: Manifest
    verification: Verification
    speed: SpeedReport | None
    size_bytes: int
    reference_size_bytes: int
    not_run: str | None
    seconds: dict[str, float]
    synthetic: bool

    @property
    def gate_open(self) -> bool:
        """Whether the gate passed, or there was none."""
        return self.verification.verdict in (None, Verdict.PASS)


def export_bundle(
    config: ExportConfig, steps: Steps, *, command: tuple[str, ...], tile_sets: TileSets | None = None
) -> ExportResult:
    """Turn an encoder into a verified bundle.

    Args:
        config: What was asked for.
        steps: Where progress goes.
        command: The command line, for the manifest.
        tile_sets: From `open_tile_sets`, where they are open already; those that `config` names when None.

    Returns:
        What was made; the folder exists, whatever the gate says.

    Raises:
        UsageError: The output folder is taken, or options contradict one another.
        InputError: The model or a tile cannot be read, or a graph does not reproduce its model.
        RuntimeMissing: A library that the job needs is not installed.
    """
    check_vacant(config.output, marks=(MANIFEST,), overwrite=config.overwrite)
    backend = backend_of(config.target)
    backend.check(config)
    config, ranges = _as_trained(config, backend)
    with atomic_folder(config.output, marks=(MANIFEST,), overwrite=config.overwrite) as folder:
        scratch = folder / ".scratch"
        scratch.mkdir()
        with steps.step("load", config.model):
            tile_sets = tile_sets or open_tile_sets(config)
            model = _load(config, steps)
            backend.check_network(config, model.module)
            graph = export_onnx(model.module, model.spec, scratch / "reference.onnx")
        with steps.step("calibrate", _described(tile_sets)):
            _announce(tile_sets, steps)
            tile_sets, calibration, choice = calibrate(config, model.spec.tile_px, graph, tile_sets, steps)
            job = Job(
                model=model,
                graph=graph,
                calibration=calibration,
                precision=config.precision,
                recipe=config.int8_recipe if choice is not None else None,
                ranges=ranges,
                batch=config.fixed_batch,
                threads=config.threads,
                last_use=not config.speed,
            )
            _check_graph(job, steps)
        built, quantization = _quantize_and_build(backend, config, job, folder, scratch, steps)
        if quantization is not None and choice is not None:
            if not config.keep_paths:
                # Groups and labels may be patients.
                choice["tiles_a_stratum"] = list(choice["tiles_a_stratum"].values())
            quantization["calibration"] = choice
        with ExitStack() as opened:
            reference, bundle, verification = _verify(backend, config, job, folder, tile_sets, steps, opened)
            with steps.step("bench", "reference, bundle and PyTorch take turns" if config.speed else "skipped"):
                speed = _speed(job, reference, bundle) if config.speed else None
        result = ExportResult(
            folder=config.output,
            manifest=_manifest(config, model, tile_sets, quantization, built, verification, command),
            verification=verification,
            speed=speed,
            size_bytes=_model_size(folder),
            reference_size_bytes=onnx_bytes(graph),
            not_run=built.not_run,
            seconds=steps.seconds,
            synthetic=tile_sets.synthetic,
        )
        # Windows removes no file that is mapped: everything is closed by now.
        shutil.rmtree(scratch)
        return _write(backend, result, folder, built)


def _quantize_and_build(
    backend: ExportBackend, config: ExportConfig, job: Job, folder: Path, scratch: Path, steps: Steps
) -> tuple[Built, dict[str, Any] | None]:
    with steps.step("quantize", config.precision.value):
        quantized = backend.quantize(job, scratch)
        path = path_sentence(quantized.quantization)
        if path is not None:
            steps.note(path)
    if job.last_use:
        free_weights(job.model.module)
    with steps.step("build", config.target.value):
        built = backend.build(config, job, quantized, folder, steps)
    return built, quantized.quantization


def _verify(
    backend: ExportBackend,
    config: ExportConfig,
    job: Job,
    folder: Path,
    tile_sets: TileSets,
    steps: Steps,
    opened: ExitStack,
) -> tuple[Encoder, Encoder, Verification]:
    """Compare the bundle with the reference, and write the selftest.

    Both are open at once, in `opened`, where they are timed side by side after; otherwise, since large networks may
    fit into the memory one at a time only, the reference is closed before the bundle is opened.
    """
    of: dict[str, Any] = {"fit": tile_sets.fit, "evaluation": tile_sets.evaluation}
    with steps.step("verify", f"{len(tile_sets.evaluation.records)} tiles of {tile_sets.evaluation.source.name}"):
        drawn = selftest_tiles(job.model.spec)
        reference = opened.enter_context(closing(backend.open_reference(job)))
        if config.speed:
            bundle = opened.enter_context(closing(backend.open_written(job, folder)))
            found = embed_compared({"reference": reference, "bundle": bundle}, **of, steps=steps)
            write_selftest(folder, reference, drawn)
        else:
            found = embed_compared({"reference": reference}, **of, steps=steps)
            write_selftest(folder, reference, drawn)
            reference.close()
            bundle = opened.enter_context(closing(backend.open_written(job, folder)))
            found |= embed_compared({"bundle": bundle}, **of, steps=steps)
        add_deployed(folder, bundle, drawn)
        limits: dict[str, Any] = {"max_drop_pp": config.max_drop_pp, "seed": config.seed}
        verification = compare_with_reference(found["reference"], found["bundle"], **of, **limits)
    return reference, bundle, _unnamed(verification, config, len(tile_sets.evaluation.records))


def _unnamed(found: Verification, config: ExportConfig, count: int) -> Verification:
    if config.keep_paths:
        return found
    drops = {method: replace(drop, classes=class_numbers(drop.classes)) for method, drop in found.drops.items()}
    return replace(found, drops=drops, worst_tiles=tuple(tile_number(index, count) for index in found.agreement.worst))


def _as_trained(config: ExportConfig, backend: ExportBackend) -> tuple[ExportConfig, Path | None]:
    """The options with the recipe that a model was trained to round by, and its ranges, unless another is given."""
    ranges = None if config.recipe is not None or config.precision is not Precision.INT8 else ranges_of(config.model)
    if ranges is None or not backend.symmetric:
        return config, None
    return replace(config, recipe=recipe_of_ranges(ranges)), ranges


def _load(config: ExportConfig, steps: Steps) -> LoadedModel:
    model = load_model(
        config.model,
        patch=config.patch,
        registers=config.registers,
        pooling=config.pooling,
        tile_px=config.tile_px,
        seed=config.seed,
        known=config.known,
    )
    if model.spec.notice:
        steps.warn(model.spec.notice)
    return model.with_tokens() if config.graph_output == "tokens" else model


def _described(tile_sets: TileSets) -> str:
    calibration = tile_sets.calibration
    split = f" ({calibration.source.split})" if calibration.source.split else ""
    return f"from {len(calibration.records)} tiles of {calibration.source.name}{split}"


def _announce(tile_sets: TileSets, steps: Steps) -> None:
    if tile_sets.synthetic:
        steps.warn("SYNTHETIC tiles: give --calib and --eval real tiles before you rely on a figure")
    if tile_sets.halved:
        steps.note("these tiles have no splits: half of their slides (or tiles) calibrates, the other half judges")


def _check_graph(job: Job, steps: Steps) -> None:
    tiles = job.some_tiles(_CHECKED_TILES)
    difference = largest_difference(job.model.module, job.graph, tiles)
    if not difference < _GRAPH_TOLERANCE:
        raise InputError(
            f"the exported graph differs from the PyTorch model: 1 - cosine is {difference:.2g} on calibration tiles, "
            f"expected below {_GRAPH_TOLERANCE:g}",
            hint="report it with the versions that atlas-export doctor --json prints",
        )
    tokens = "" if job.model.spec.tokens is None else ", patch tokens included"
    steps.note(f"full-precision graph equals PyTorch: 1 - cosine <= {difference:.1e} on {len(tiles)} tiles{tokens}")


def _speed(job: Job, reference: Encoder, bundle: Encoder) -> SpeedReport:
    from atlas_edge.runtimes.torch import TorchEncoder

    eager = TorchEncoder(job.model.module, job.model.spec, threads=job.threads)
    tiles = job.some_tiles(_BENCH_TILES)
    return paired_speed(
        {"reference": reference, "bundle": bundle, "PyTorch": eager},
        tiles,
        reference="reference",
        batch=min(job.batch or _BENCH_BATCH, len(tiles)),
        rounds=_BENCH_ROUNDS,
        block_seconds=_BENCH_BLOCK_SECONDS,
    )


def _manifest(
    config: ExportConfig,
    model: LoadedModel,
    tile_sets: TileSets,
    quantization: dict[str, Any] | None,
    built: Built,
    verification: Verification,
    command: tuple[str, ...],
) -> Manifest:
    calibration, evaluation = (
        tile_sets.provenances() if config.keep_paths else map(unnamed_tiles, tile_sets.provenances())
    )
    drops = {
        method: {"drop_pp": d.drop_pp, "low_pp": d.low_pp, "high_pp": d.high_pp}
        for method, d in verification.drops.items()
    }
    return Manifest(
        encoder=model.spec,
        target=config.target,
        precision=config.precision,
        execution=built.execution,
        versions=hardware.versions(),
        command=command if config.keep_paths else command_without_paths(command),
        config=config.for_manifest(),
        model=model.provenance,
        calibration=calibration,
        evaluation=evaluation,
        quantization=quantization,
        verification={
            "cosine_median": verification.agreement.cosine_median,
            "cosine_p1": verification.agreement.cosine_p1,
            "cosine_worst": verification.agreement.cosine_worst,
            **({} if verification.tokens is None else {"tokens": asdict(verification.tokens)}),
            "drops": drops,
            "verdict": verification.verdict,
            "deployed_file_was_run": built.not_run is None,
        },
        notice=plain_runtime_notice(config.target, config.precision, portable=built.execution.portable),
        files=(),
    )


def _model_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith("model."))


def _write(backend: ExportBackend, result: ExportResult, folder: Path, built: Built) -> ExportResult:
    data = report_json(result, details=built.details)
    # The page names the hash of these bytes.
    for name, text in (("report.json", data), ("report.html", report_page(result, data))):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (folder / "report.md").write_text(report_markdown(result), encoding="utf-8")
    (folder / "README.md").write_text(model_card(result), encoding="utf-8")
    backend.finish(folder, result.manifest, built)
    return replace(result, manifest=write_manifest(folder, result.manifest))
