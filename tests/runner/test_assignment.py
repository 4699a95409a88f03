"""Who should own which shard: the same for everybody, complete, bounded, and with few moves."""

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entityq.runner.assignment import ROOM, Candidate, assign

incarnations = st.integers(1, 2**62)
weights = st.sampled_from([0.1, 0.5, 1.0, 1.0, 1.0, 2.0, 10.0])
candidates = st.lists(
    st.builds(Candidate, incarnations, weights), min_size=1, max_size=12, unique_by=lambda c: c.incarnation
)
equals = st.lists(incarnations, min_size=1, max_size=12, unique=True).map(
    lambda found: [Candidate(incarnation, 1.0) for incarnation in found]
)
shards = st.integers(1, 200).flatmap(
    lambda count: st.integers(0, 10_000).map(lambda first: range(first, first + count))
)


def loads(assigned: dict[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for incarnation in assigned.values():
        found[incarnation] = found.get(incarnation, 0) + 1
    return found


@given(shards, candidates)
def test_every_shard_has_one_of_the_candidates(shards: range, candidates: list[Candidate]) -> None:
    assigned = assign(shards, candidates)
    assert set(assigned) == set(shards)
    assert set(assigned.values()) <= {candidate.incarnation for candidate in candidates}


@given(shards, candidates)
def test_nobody_has_more_than_a_tenth_above_the_fair_share(
    shards: range, candidates: list[Candidate]
) -> None:
    total = sum(candidate.weight for candidate in candidates)
    found = loads(assign(shards, candidates))
    for candidate in candidates:
        fair = len(shards) * candidate.weight / total
        assert found.get(candidate.incarnation, 0) <= math.ceil(round(ROOM * fair, 6))


@given(shards, candidates, st.randoms())
def test_the_order_of_the_input_does_not_matter(
    shards: range, candidates: list[Candidate], random: Random
) -> None:
    mixed_shards, mixed_candidates = list(shards), list(candidates)
    random.shuffle(mixed_shards)
    random.shuffle(mixed_candidates)
    assert assign(mixed_shards, mixed_candidates) == assign(shards, candidates)


@settings(max_examples=200)
@given(shards, equals, incarnations)
def test_a_runner_that_joins_moves_about_its_own_part(
    shards: range, runners: list[Candidate], joining: int
) -> None:
    """And, read backwards, one that leaves."""
    before = [candidate for candidate in runners if candidate.incarnation != joining]
    if not before:
        return
    old, new = assign(shards, before), assign(shards, [*before, Candidate(joining, 1.0)])
    moved = sum(old[shard] != new[shard] for shard in shards)
    fair = len(shards) / (len(before) + 1)
    assert moved <= 1.5 * fair + 4 * math.sqrt(fair) + 3


@given(shards, candidates)
def test_who_is_alone_has_everything(shards: range, candidates: list[Candidate]) -> None:
    assert set(assign(shards, candidates[:1]).values()) == {candidates[0].incarnation}
    assert assign(shards, []) == {}


def test_weights_share_out_in_proportion() -> None:
    found = loads(assign(range(1_000), [Candidate(1, 1.0), Candidate(2, 3.0)]))
    assert found[2] == pytest.approx(750, abs=75)


def test_who_knows_more_types_comes_first_but_is_not_given_everything() -> None:
    """The first runner of a new release takes twice its share; when all have it, all share alike."""
    old = [Candidate(incarnation, 1.0, known_types=1) for incarnation in range(1, 10)]
    found = loads(assign(range(100), [*old, Candidate(10, 1.0, known_types=2)]))
    assert found[10] == 20
    assert max(found.values()) == 20

    new = [Candidate(incarnation, 1.0, known_types=2) for incarnation in range(1, 11)]
    assert max(loads(assign(range(100), new)).values()) <= 11


def test_who_knows_more_types_has_all_shards_when_there_are_enough_of_them() -> None:
    old = [Candidate(incarnation, 1.0, known_types=1) for incarnation in range(1, 6)]
    new = [Candidate(incarnation, 1.0, known_types=2) for incarnation in range(6, 11)]
    assert set(assign(range(100), [*old, *new]).values()) <= {candidate.incarnation for candidate in new}


def test_the_computation_is_frozen() -> None:
    """Runners of different versions must compute alike; see the module."""
    assigned = assign(range(12), [Candidate(101, 1.0), Candidate(102, 1.0), Candidate(103, 2.0)])
    assert [assigned[shard] for shard in range(12)] == [
        103,
        102,
        101,
        103,
        101,
        101,
        103,
        103,
        102,
        103,
        101,
        102,
    ]
