"""Thousands of slides over several machines: the same functions, handed out by Ray Data."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atlas_edge.cli import require_module
from atlas_edge.embed.config import EmbedConfig
from atlas_edge.embed.jobs import SlideFailure, SlideSkipped
from atlas_edge.embed.slide import SlideResult
from atlas_edge.embed.workers import SlideOutcome, attempt, open_encoder


def embed_with_ray(
    jobs: list[tuple[Path, Path]],
    bundle: str,
    config: EmbedConfig,
    *,
    workers: int,
    gpus_a_worker: float = 0.0,
    address: str | None = None,
) -> Iterator[tuple[SlideOutcome, str]]:
    """Embed slides with a pool of Ray actors; each loads the bundle once.

    Slides, bundle and outputs lie where every machine sees them by the same path. A slide whose machine is lost is
    begun again elsewhere, and goes on from its journal.

    Args:
        jobs: Slides and outputs.
        bundle: Bundle folder.
        config: See `EmbedConfig`.
        workers: Actors.
        gpus_a_worker: GPUs that Ray gives each actor.
        address: Ray cluster (`auto`, `host:6379`); one on this machine is started when None.

    Yields:
        What became of a slide, and the Ray actor that embedded it.

    Raises:
        RuntimeMissing: Ray is not installed.
    """
    require_module("ray", extra="ray")
    # Neither usage reports nor a dashboard: slides are patients'.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    local: dict[str, Any] = (
        {} if address else {"include_dashboard": False, "num_cpus": max(workers, os.cpu_count() or 1)}
    )
    ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, **local)
    try:
        items = [{"slide": str(slide), "out": str(out)} for slide, out in jobs]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _SlideEmbedder,
            fn_constructor_kwargs={"bundle": bundle, "config": config.as_json()},
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus_a_worker or None,
        )
        for row in dataset.iter_rows():
            yield _result(row["result"]), row["actor"]
    finally:
        ray.shutdown()


class _SlideEmbedder:
    """An actor: one encoder, one slide at a time."""

    def __init__(self, *, bundle: str, config: dict[str, Any]) -> None:
        import ray

        self._config = EmbedConfig(**config)
        self._encoder, self._sha256 = open_encoder(bundle, batch=self._config.batch)
        self._actor = ray.get_runtime_context().get_actor_id()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import dataclasses
        import json

        slide, out = Path(row["slide"]), Path(row["out"])
        result = attempt(slide, out, self._encoder, self._config, self._sha256, lambda *_: None)
        # As text: a column of Ray Data holds one type, and unreadable tiles differ from slide to slide.
        return {"result": json.dumps(dataclasses.asdict(result)), "actor": self._actor}


def _result(text: str) -> SlideOutcome:
    import json

    from atlas_edge.embed.pipeline import StageSeconds

    fields = json.loads(text)
    if "reason" in fields:
        return SlideFailure(**fields)
    if "why" in fields:
        return SlideSkipped(**fields)
    return SlideResult(**{**fields, "stages": StageSeconds(**fields["stages"])})
