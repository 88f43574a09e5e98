"""Several slides: one after the other in this process, or one worker process a device."""

import logging
import multiprocessing
import os
import queue
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atlas_edge.bundle import MANIFEST, read_manifest, sha256_file
from atlas_edge.cli import system_error
from atlas_edge.embed.config import EmbedConfig
from atlas_edge.embed.jobs import SlideFailure, SlideSkipped
from atlas_edge.embed.slide import Embedding, SlideResult, embed_slide_for
from atlas_edge.encoder import Encoder
from atlas_edge.errors import AtlasError, InputError, NoTissue, RuntimeMissing, UsageError
from atlas_edge.models.load import load_encoder, load_model
from atlas_edge.models.timm_config import WEIGHTS
from atlas_edge.options import Running
from atlas_edge.package.choice import chosen_bundle
from atlas_edge.spec import EncoderSpec
from atlas_edge.system.hardware import usable_cores
from atlas_edge.system.paths import printable

Progress = Callable[[Path, int, int], None]
SlideJob = tuple[Path, Mapping[int, Path]]
"""A slide, and its output by the number of each encoder that is to embed it."""
Encoders = Mapping[int, tuple[Encoder, str]]
"""Encoders, and what tells each from others; see `bundle_hash`."""

_POLL_S = 1.0
_LOGGER = logging.getLogger("atlas_edge")


SlideOutcome = SlideResult | SlideSkipped | SlideFailure


def one_bundle(bundle: str, running: Running) -> tuple[str, Running]:
    """What a command opens from here on: of a package the variant that is best here, and on what it runs."""
    folder, device = chosen_bundle(bundle, device=running.device)
    return (str(folder), replace(running, device=device)) if folder != Path(bundle) else (bundle, running)


def open_encoder(
    bundle: str, *, batch: int, streams: int | None = None, running: Running = Running()
) -> tuple[Encoder, str]:
    """Load a bundle or model, in several streams where its runtime has them.

    Args:
        bundle: Bundle folder, or a model.
        batch: Tiles that `encode` will get.
        streams: Calls side by side; when None as many as there are cores, or a half or third of that where the batch
            fills no more.
        running: On what it runs.

    Returns:
        The encoder, and what tells it from others: see `bundle_hash`.

    Raises:
        UsageError: `streams` for a runtime without them.
    """
    encoder = load_encoder(bundle, device=running.device, cache_dir=running.cache)
    able = encoder.capabilities
    if able.configure is not None:
        # Two calls of one thread each wait less for one another, and for the decoder, than one call of two threads.
        able.configure(streams=streams or _even_streams(usable_cores(), max(batch // (able.batch or batch), 1)))
    elif streams is not None:
        raise UsageError(f"--streams {streams}: {encoder.runtime} has no streams", hint="leave --streams out")
    return encoder, bundle_hash(bundle)


def _even_streams(cores: int, most: int) -> int:
    """At most so many, of equally many cores each: 16 streams would leave a third of 24 cores idle, 12 none."""
    return max(cores // -(-cores // most), 1)


def read_spec(bundle: str) -> tuple[EncoderSpec, str]:
    """What `open_encoder` would open, without loading a bundle: its encoder and its hash."""
    is_bundle = (Path(bundle) / MANIFEST).is_file()
    spec = read_manifest(Path(bundle)).encoder if is_bundle else load_model(bundle).spec
    return spec, bundle_hash(bundle)


def bundle_hash(bundle: str) -> str:
    """SHA-256 of a bundle's manifest, of a model folder's weights; "" for a model that is known by its name."""
    for file in (Path(bundle) / MANIFEST, Path(bundle) / WEIGHTS):
        if file.is_file():
            return sha256_file(file)
    return ""


def embed_here(
    jobs: Sequence[SlideJob], encoders: Encoders, config: EmbedConfig, progress: Progress
) -> Iterator[SlideOutcome]:
    """Embed slides one after the other; one that fails does not stop the rest.

    `progress` is told of a slide, 0 and 0 before its tiles are known, then of its tiles done and in all.
    """
    for job in jobs:
        progress(job[0], 0, 0)
        yield from attempt(job, encoders, config, progress, alone=len(jobs) == 1)


def embed_on_devices(
    jobs: Sequence[SlideJob],
    bundles: Mapping[int, str],
    config: EmbedConfig,
    *,
    devices: list[str],
    streams: int | None = None,
) -> Generator[SlideOutcome, None, None]:
    """Embed slides with one process a device; each takes the next slide when it has done its first.

    Args:
        jobs: Slides and outputs.
        bundles: Bundle folders.
        config: See `EmbedConfig`.
        devices: CUDA devices, as `CUDA_VISIBLE_DEVICES` names them; a worker sees one of them only.
        streams: See `open_encoder`.

    Raises:
        RuntimeMissing: A worker died.
        UsageError: The bundle does not run on these devices.
    """
    context = multiprocessing.get_context("spawn")
    waiting, done = context.Queue(), context.Queue()
    # A first slide for each, however long another one takes to start.
    firsts = list(zip(devices, jobs, strict=False))
    for job in [*jobs[len(firsts) :], *[None] * len(firsts)]:
        waiting.put(job)
    workers = [
        context.Process(
            target=_work, args=(device, first, bundles, config, streams, len(jobs) == 1, waiting, done), daemon=True
        )
        for device, first in firsts
    ]
    for worker in workers:
        worker.start()
    try:
        for _ in jobs:
            yield from _next(done, workers)
    finally:
        for worker in workers:
            worker.join(timeout=5)
            worker.terminate()


def _next(done: Any, workers: list[Any]) -> list[SlideOutcome]:
    while True:
        try:
            result = done.get(timeout=_POLL_S)
        except queue.Empty:
            dead = [worker for worker in workers if worker.exitcode not in (None, 0)]
            if dead:
                raise RuntimeMissing(
                    f"a worker ended with exit code {dead[0].exitcode}", hint="run again on fewer --devices"
                ) from None
            continue
        if isinstance(result, AtlasError):
            raise result
        assert isinstance(result, list)
        return result


def _work(
    device: str,
    first: SlideJob,
    bundles: Mapping[int, str],
    config: EmbedConfig,
    streams: int | None,
    alone: bool,
    waiting: Any,
    done: Any,
) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    encoders: dict[int, tuple[Encoder, str]] = {}
    try:
        for number, bundle in bundles.items():
            encoder, sha256 = open_encoder(bundle, batch=config.batch, streams=streams)
            if encoder.capabilities.gpu is None:
                raise UsageError(
                    f"--devices {device}: {bundle} runs on the processor here ({encoder.runtime})",
                    hint="leave --devices out, one process uses all cores; a TensorRT bundle takes CUDA devices, and "
                    "an ONNX one with onnxruntime-gpu",
                )
            encoders[number] = encoder, sha256
    except AtlasError as error:
        done.put(error)
        return
    job: SlideJob | None = first
    while job is not None:
        items = attempt(job, encoders, config, lambda *_: None, alone=alone)
        done.put([replace(item, device=device) if isinstance(item, SlideResult) else item for item in items])
        job = waiting.get()
    for encoder, _ in encoders.values():
        encoder.close()


def attempt(
    job: SlideJob, encoders: Encoders, config: EmbedConfig, progress: Progress, *, alone: bool = False
) -> list[SlideOutcome]:
    """Embed a slide, or say why not: whatever a slide does to the libraries that read it, the others go on.

    Encoders of one tile side and one µm per pixel share what is decoded.

    Args:
        job: Slide and outputs.
        encoders: What embeds.
        config: See `EmbedConfig`.
        progress: See `embed_here`.
        alone: It is the only one: without tissue there is no result.
    """
    slide, outs = job
    sharing: dict[tuple[int, float | None], list[Embedding]] = {}
    for number, out in outs.items():
        encoder, sha256 = encoders[number]
        grid = encoder.spec.tile_px, config.tile_mpp or encoder.spec.mpp
        sharing.setdefault(grid, []).append(Embedding(encoder=encoder, out=out, bundle_sha256=sha256))
    return [item for wanted in sharing.values() for item in _attempt(slide, wanted, config, progress, alone)]


def _attempt(
    slide: Path, wanted: Sequence[Embedding], config: EmbedConfig, progress: Progress, alone: bool
) -> Sequence[SlideOutcome]:
    try:
        return embed_slide_for(wanted, slide, config, progress=lambda ready, total: progress(slide, ready, total))
    except NoTissue as error:
        if alone:
            return [SlideFailure(slide=str(slide), reason=str(error), exit_code=error.exit_code)]
        why = "no tissue, nothing to embed"
        return [SlideSkipped(slide=str(slide), out=str(one.out), why=why) for one in wanted]
    except AtlasError as error:
        return [SlideFailure(slide=str(slide), reason=str(error), exit_code=error.exit_code)]
    except Exception as error:
        _LOGGER.debug("%s", printable(slide), exc_info=True)
        return [SlideFailure(slide=str(slide), reason=failure_of(error), exit_code=InputError.exit_code)]


def failure_of(error: Exception) -> str:
    """Why a slide failed, with what mends it where that is known."""
    return system_error(error) if isinstance(error, OSError) else reason_of(error)


def reason_of(error: BaseException) -> str:
    """An error in words, also where a library raised it without any."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}"
    return str(error) if isinstance(error, AtlasError) else f"{type(error).__name__}: {error}".removesuffix(": ")
