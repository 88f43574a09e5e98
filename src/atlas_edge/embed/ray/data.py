"""Thousands of slides over several machines: the same functions, handed out by Ray Data."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas_edge.cli import require_module
from atlas_edge.embed.config import EmbedConfig
from atlas_edge.embed.jobs import SlideFailure, SlideSkipped
from atlas_edge.embed.slide import SlideResult
from atlas_edge.embed.workers import SlideJob, SlideOutcome, attempt, open_encoder
from atlas_edge.errors import RuntimeMissing
from atlas_edge.slides.readers.foreign import one_line


def embed_with_ray(
    jobs: Sequence[SlideJob],
    bundles: Mapping[int, str],
    config: EmbedConfig,
    *,
    workers: int,
    gpus_a_worker: float = 0.0,
    address: str | None = None,
) -> Iterator[tuple[SlideOutcome, str]]:
    """Embed slides with a pool of Ray actors; each loads the bundles once.

    Slides, bundle and outputs lie where every machine sees them by the same path. A slide whose machine is lost is
    begun again elsewhere, and goes on from its journal.

    Args:
        jobs: Slides and outputs.
        bundles: Bundle folders.
        config: See `EmbedConfig`.
        workers: Actors.
        gpus_a_worker: GPUs that Ray gives each actor.
        address: Ray cluster (`auto`, `host:6379`); one on this machine is started when None.

    Yields:
        What became of a slide, and the Ray actor that embedded it.

    Raises:
        RuntimeMissing: Ray is not installed, or there is no cluster.
    """
    require_module("ray", extra="ray")
    # Neither usage reports nor a dashboard: slides are patients'.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    local: dict[str, Any] = (
        {} if address else {"include_dashboard": False, "num_cpus": max(workers, os.cpu_count() or 1)}
    )
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, **local)
    except Exception as error:  # it raises almost anything
        where = f"at --address {address}" if address else "can be started on this machine"
        hint = "see: ray status" if address else "try again when it has less to do, or name a cluster by --address"
        raise RuntimeMissing(f"no Ray cluster {where}: {one_line(error)}", hint=hint) from error
    try:
        items = [
            {"slide": str(slide), "outs": json.dumps({number: str(out) for number, out in outs.items()})}
            for slide, outs in jobs
        ]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _SlideEmbedder,
            fn_constructor_kwargs={"bundles": dict(bundles), "config": config.as_json()},
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus_a_worker or None,
        )
        for row in dataset.iter_rows():
            for fields in json.loads(row["results"]):
                yield _result(fields), row["actor"]
    finally:
        ray.shutdown()


class _SlideEmbedder:
    """An actor: its encoders, one slide at a time."""

    def __init__(self, *, bundles: dict[int, str], config: dict[str, Any]) -> None:
        import ray

        self._config = EmbedConfig(**config)
        batch = self._config.batch
        self._encoders = {number: open_encoder(bundle, batch=batch) for number, bundle in bundles.items()}
        self._actor = ray.get_runtime_context().get_actor_id()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        outs = {int(number): Path(out) for number, out in json.loads(row["outs"]).items()}
        results = attempt((Path(row["slide"]), outs), self._encoders, self._config, lambda *_: None)
        # As text: a column of Ray Data holds one type, and unreadable tiles differ from slide to slide.
        return {"results": json.dumps([dataclasses.asdict(result) for result in results]), "actor": self._actor}


def _result(fields: dict[str, Any]) -> SlideOutcome:
    from atlas_edge.embed.pipeline import StageSeconds

    if "reason" in fields:
        return SlideFailure(**fields)
    if "why" in fields:
        return SlideSkipped(**fields)
    return SlideResult(**{**fields, "stages": StageSeconds(**fields["stages"])})
