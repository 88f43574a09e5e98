"""Several slides: one after the other in this process, or one worker process a device."""

import multiprocessing
import os
import queue
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_edge.bundle import MANIFEST, sha256_file
from atlas_edge.embed.slide import EmbedConfig, SlideResult, embed_slide
from atlas_edge.encoder import Encoder
from atlas_edge.errors import AtlasError, InputError, RuntimeMissing, UsageError

Progress = Callable[[Path, int, int], None]

_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFailure:
    """A slide that could not be embedded, with the exit code of its error."""

    slide: str
    reason: str
    exit_code: int


def open_encoder(bundle: str, *, batch: int, streams: int | None = None) -> tuple[Encoder, str]:
    """Load a bundle or model, in several streams where its runtime has them.

    Args:
        bundle: Bundle folder, or a model.
        batch: Tiles that `encode` will get.
        streams: Calls side by side; as many as there are cores and the batch fills when None.

    Returns:
        The encoder, and the SHA-256 of the bundle's manifest ("" for a model).

    Raises:
        UsageError: `streams` for a runtime without them.
    """
    from atlas_edge.models import load_encoder

    encoder = load_encoder(bundle)
    configure = getattr(encoder, "configure", None)
    if configure is not None:
        # Two calls of one thread each wait less for one another, and for the decoder, than one call of two threads.
        fills = max(batch // int(getattr(encoder, "batch", batch)), 1)
        configure(streams=streams or min(os.cpu_count() or 1, fills))
    elif streams is not None:
        raise UsageError(f"--streams {streams}: {encoder.runtime} has no streams", hint="leave --streams out")
    manifest = Path(bundle) / MANIFEST
    return encoder, sha256_file(manifest) if manifest.is_file() else ""


def embed_here(
    jobs: list[tuple[Path, Path]], encoder: Encoder, config: EmbedConfig, sha256: str, progress: Progress
) -> Iterator[SlideResult | SlideFailure]:
    """Embed slides one after the other; one that fails does not stop the rest.

    `progress` is told of a slide, 0 and 0 before its tiles are known, then of its tiles done and in all.
    """
    for slide, out in jobs:
        progress(slide, 0, 0)
        yield attempt(slide, out, encoder, config, sha256, progress)


def embed_on_devices(
    jobs: list[tuple[Path, Path]], bundle: str, config: EmbedConfig, *, devices: list[str], streams: int | None = None
) -> Generator[SlideResult | SlideFailure, None, None]:
    """Embed slides with one process a device; each takes the next slide when it has done one.

    Args:
        jobs: Slides and outputs.
        bundle: Bundle folder.
        config: See `EmbedConfig`.
        devices: CUDA devices, as `CUDA_VISIBLE_DEVICES` names them; a worker sees one of them only.
        streams: See `open_encoder`.

    Raises:
        RuntimeMissing: A worker died.
    """
    context = multiprocessing.get_context("spawn")
    waiting, done = context.Queue(), context.Queue()
    for job in [*jobs, *[None] * len(devices)]:
        waiting.put(job)
    workers = [
        context.Process(target=_work, args=(device, bundle, config, streams, waiting, done), daemon=True)
        for device in devices
    ]
    for worker in workers:
        worker.start()
    try:
        for _ in jobs:
            yield _next(done, workers)
    finally:
        for worker in workers:
            worker.join(timeout=5)
            worker.terminate()


def _next(done: Any, workers: list[Any]) -> SlideResult | SlideFailure:
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
        assert isinstance(result, SlideResult | SlideFailure)
        return result


def _work(device: str, bundle: str, config: EmbedConfig, streams: int | None, waiting: Any, done: Any) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        encoder, sha256 = open_encoder(bundle, batch=config.batch, streams=streams)
    except AtlasError as error:
        done.put(error)
        return
    while (job := waiting.get()) is not None:
        slide, out = job
        done.put(attempt(slide, out, encoder, config, sha256, lambda *_: None))
    encoder.close()


def attempt(
    slide: Path, out: Path, encoder: Encoder, config: EmbedConfig, sha256: str, progress: Progress
) -> SlideResult | SlideFailure:
    """Embed a slide, or say why not."""
    try:
        return embed_slide(
            slide,
            encoder,
            out,
            config,
            bundle_sha256=sha256,
            progress=lambda ready, total: progress(slide, ready, total),
        )
    except (InputError, UsageError) as error:
        return SlideFailure(slide=str(slide), reason=str(error), exit_code=error.exit_code)
    except OSError as error:
        return SlideFailure(slide=str(slide), reason=f"{error.strerror or error}", exit_code=InputError.exit_code)
