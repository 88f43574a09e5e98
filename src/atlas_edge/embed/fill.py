"""Tiles of a slide through encoders into their journals, each tile decoded once for all of them."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from atlas_edge.embed.config import EmbedConfig
from atlas_edge.embed.pipeline import StageClock, embedded, read_again
from atlas_edge.embed.resume.journal import Journal
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.slides import TileReader

_CHECKPOINT_S = 2.0
_LISTED = 3
_SCANNER_TILE = 4


@dataclass(frozen=True, slots=True)
class Filling:
    """A journal, and what fills it."""

    encoder: Encoder
    journal: Journal


def fill(
    reader: TileReader,
    fillings: Sequence[Filling],
    config: EmbedConfig,
    clock: StageClock,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Embed what each journal lacks of a slide's tiles.

    Args:
        reader: Of the slide.
        fillings: Encoders of one tile side, and their journals.
        config: See `EmbedConfig`.
        clock: Gathers seconds.
        progress: Called with tiles that are in all journals, and tiles in all.

    Raises:
        InputError: Too many tiles are unreadable.
    """
    total = len(reader.grid.coords)
    limit = _most_unreadable(config.max_unreadable, total)
    saved = time.monotonic()
    batches = embedded(
        reader,
        [one.encoder for one in fillings],
        clock,
        firsts=[one.journal.rows for one in fillings],
        threads=config.threads,
        batch=config.batch,
        tokens=config.tokens,
    )
    with closing(batches):
        for done in batches:
            filling = fillings[done.by]
            with clock.stage("write"):
                filling.journal.append(done.features, done.unreadable, **done.besides)
                _check_readable(filling, reader, config, limit)
                if time.monotonic() - saved > _CHECKPOINT_S:
                    _checkpoint(fillings)
                    saved = time.monotonic()
            if progress is not None:
                progress(min(one.journal.rows for one in fillings), total)
    for filling in fillings:
        _check_readable(filling, reader, config, limit, at_the_end=True)
    _checkpoint(fillings)


def _checkpoint(fillings: Sequence[Filling]) -> None:
    for filling in fillings:
        filling.journal.checkpoint()


def _check_readable(
    filling: Filling, reader: TileReader, config: EmbedConfig, limit: int, *, at_the_end: bool = False
) -> None:
    """Try unreadable tiles once more before they are given up, be it by this run or the one before."""
    journal = filling.journal
    if at_the_end or len(journal.unreadable) > limit:
        waiting = sorted(journal.unreadable)
        again = read_again(reader, filling.encoder, waiting, batch=config.batch, tokens=config.tokens)
        for indices, features, besides in again:
            journal.replace(indices, features, **besides)
    if len(journal.unreadable) > limit:
        raise _too_many_unreadable(journal, limit, reader)


def _most_unreadable(share: float, total: int) -> int:
    """One damaged tile of the scanner touches four of ours: it does not fail a slide of a few dozen."""
    return max(int(share * total), min(_SCANNER_TILE, total // 10)) if share else 0


def _too_many_unreadable(journal: Journal, limit: int, reader: TileReader) -> InputError:
    total = len(reader.grid.coords)
    first = list(journal.unreadable.items())[:_LISTED]
    listed = "; ".join(f"{reader.grid.coords[index].tolist()}: {reason}" for index, reason in first)
    return InputError(
        f"{len(journal.unreadable)} of {total} tiles are unreadable, at most {limit} may be: {listed}",
        hint="copy the slide again, or add --max-unreadable 0.05",
    )
