from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_edge.errors import UsageError
from atlas_edge.tiles import TileRecord, open_tiles, provenance, sample, select_records


def records_of(sizes: dict[str, int]) -> list[TileRecord]:
    return [
        TileRecord(id=f"{name}-{index}", label=name, group=f"{name}-{index % 3}")
        for name, count in sizes.items()
        for index in range(count)
    ]


def test_shares_equally_and_gives_away_what_a_class_lacks() -> None:
    chosen = select_records(records_of({"a": 100, "b": 100, "c": 4}), 40, by=("label",))
    assert Counter(record.label for record in chosen) == {"a": 18, "b": 18, "c": 4}


def test_shares_within_a_class_too() -> None:
    chosen = select_records(records_of({"a": 90, "b": 90}), 12, by=("label", "group"))
    assert set(Counter(record.group for record in chosen).values()) == {2}


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1),
    limit=st.integers(1, 60),
    seed=st.integers(0, 3),
)
def test_properties(sizes: dict[str, int], limit: int, seed: int) -> None:
    records = records_of(sizes)
    chosen = select_records(records, limit, seed=seed)
    assert len(chosen) == min(limit, len(records))
    assert len({record.id for record in chosen}) == len(chosen)
    assert chosen == sorted(chosen, key=records.index)
    assert {record.id for record in select_records(records[::-1], limit, seed=seed)} == {r.id for r in chosen}
    counts = Counter(record.label for record in chosen)
    full = [name for name in sizes if counts[name] == sizes[name]]
    rest = [counts[name] for name in sizes if name not in full]
    assert not rest or max(rest) - min(rest) <= 1


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 12), min_size=1, max_size=300),
    limit=st.integers(1, 40),
    seed=st.integers(0, 3),
    held=st.integers(1, 4),
)
def test_what_is_dropped_on_the_way_would_not_have_been_chosen(
    groups: list[int], limit: int, seed: int, held: int
) -> None:
    records = [
        TileRecord(id=str(number), label="ab"[group % 2], scanner="xyz"[group % 3], group=str(group))
        for number, group in enumerate(groups)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "_HELD", len(records))
        expected = select_records(records, limit, seed=seed)
        patch.setattr(sample, "_HELD", held)
        assert select_records(records, limit, seed=seed) == expected


def test_another_seed_draws_others() -> None:
    source = open_tiles("synthetic:256")
    assert (
        select_records(source, 12, seed=0) == select_records(source, 12, seed=0) != select_records(source, 12, seed=1)
    )


def test_refuses_nothing() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        select_records(records_of({"a": 3}), 0)
    with pytest.raises(UsageError, match="no tiles"):
        provenance(open_tiles("synthetic:4"), [])


def test_provenance_names_what_was_used() -> None:
    source = open_tiles("synthetic:64", role="calibration")
    everything, some = provenance(source), provenance(source, select_records(source, 6))
    assert (everything.tiles, some.tiles) == (32, 6)
    assert everything.synthetic
    assert everything.split == "train"
    assert everything.fingerprint == source.fingerprint() != some.fingerprint
