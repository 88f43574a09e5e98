"""Choosing a limited number of tiles that stand for all of them, and saying which were used."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from atlas_edge.errors import UsageError
from atlas_edge.manifest import TilesProvenance
from atlas_edge.tiles.source import TileRecord, TileSource

Stratum = Literal["label", "scanner", "stain", "center", "group"]

STRATA: tuple[Stratum, ...] = ("label", "scanner", "stain", "group")

# Hash, index, record.
_Ranked = tuple[int, int, TileRecord]
_HELD = 4


def select_records(
    source: TileSource | Iterable[TileRecord], limit: int, *, seed: int = 0, by: Sequence[Stratum] = STRATA
) -> list[TileRecord]:
    """Draw a stratified sample in one pass.

    The limit is shared equally among the values of the first field, each share among those of the second, and so on;
    a stratum with too few tiles leaves the rest to its neighbours. Within a stratum the tiles with the smallest hashes
    of seed and id are taken (bottom-k sampling), so the choice depends on neither the order nor the number of the
    others. At most five times `limit` records are held.

    Args:
        source: A tile source, or records.
        limit: How many; all of them are returned, in order, where there are no more.
        seed: Another seed draws other tiles.
        by: Fields to stratify by, the most important first.

    Returns:
        The records in the source's order.

    Raises:
        UsageError: `limit` is not positive.
    """
    if limit < 1:
        raise UsageError(f"cannot draw {limit} tiles, expected at least 1")
    held: list[_Ranked] = []
    records = source.records() if isinstance(source, TileSource) else source
    for index, record in enumerate(records):
        held.append((draw_rank(seed, record.id), index, record))
        # A stratum's share only ever shrinks as tiles come, so who is not among the chosen now will never be.
        if len(held) > _HELD * limit:
            held = _chosen(held, limit, by, seed)
    return [record for _, _, record in sorted(_chosen(held, limit, by, seed), key=lambda ranked: ranked[1])]


def provenance(source: TileSource, used: Iterable[TileRecord] | None = None) -> TilesProvenance:
    """What a manifest says of the tiles that were used.

    Args:
        source: Where they came from.
        used: The records; all of the source when None. The fingerprint then also covers their ids.

    Raises:
        UsageError: No tile was used.
    """
    fingerprint, count = source.fingerprint(), 0
    if used is None:
        count = len(source)
    else:
        digest = hashlib.sha256(fingerprint.encode())
        for record in used:
            digest.update(f"\n{record.id}".encode())
            count += 1
        fingerprint = digest.hexdigest()
    if count == 0:
        raise UsageError(f"{source.name} has no tiles to use", hint="name another split, or another tile set")
    return TilesProvenance(
        name=source.name,
        kind=source.kind,
        split=source.split,
        tiles=count,
        fingerprint=fingerprint,
        synthetic=source.synthetic,
        licence=source.licence,
    )


def draw_rank(seed: int, name: str) -> int:
    """Where a name comes in the draw of a seed: the smallest of these numbers are drawn first."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "big")


def _chosen(held: list[_Ranked], limit: int, by: Sequence[Stratum], seed: int) -> list[_Ranked]:
    strata: defaultdict[tuple[str, ...], list[_Ranked]] = defaultdict(list)
    # By hash; ties keep the order.
    for ranked in sorted(held, key=lambda ranked: ranked[:2]):
        strata[tuple(str(getattr(ranked[2], field)) for field in by)].append(ranked)
    return _share(strata, limit, depth=0, seed=seed)


def _share(strata: dict[tuple[str, ...], list[_Ranked]], limit: int, *, depth: int, seed: int) -> list[_Ranked]:
    total = sum(len(held) for held in strata.values())
    if total <= limit:
        return [ranked for held in strata.values() for ranked in held]
    if all(len(key) == depth for key in strata):
        return [ranked for held in strata.values() for ranked in held][:limit]
    parts: defaultdict[str, dict[tuple[str, ...], list[_Ranked]]] = defaultdict(dict)
    for key, held in strata.items():
        parts[key[depth]][key] = held
    sizes = {name: sum(len(held) for held in part.values()) for name, part in parts.items()}
    chosen: list[_Ranked] = []
    for name, quota in _quotas(sizes, limit, seed).items():
        if quota:
            chosen += _share(parts[name], quota, depth=depth + 1, seed=seed)
    return chosen


def _quotas(sizes: dict[str, int], limit: int, seed: int) -> dict[str, int]:
    """Equal shares of `limit`, none above its size; the odd ones go by hash, so that no name is favoured."""
    quotas = dict.fromkeys(sizes, 0)
    left = limit
    while left:
        open_names = sorted((n for n in sizes if quotas[n] < sizes[n]), key=lambda name: draw_rank(seed, name))
        if not open_names:
            break
        each = max(left // len(open_names), 1)
        for name in open_names[:left]:
            more = min(each, sizes[name] - quotas[name])
            quotas[name] += more
            left -= more
    return quotas
