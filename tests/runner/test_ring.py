"""Who watches whom, and who tells of whose end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.runner.ring import ended_beside, peer_of


@pytest.mark.parametrize(
    ("me", "alive", "peer"),
    [(5, [5], None), (5, [], None), (5, [3, 5, 9], 9), (9, [3, 5, 9], 3), (5, [9, 7, 5, 3], 7)],
)
def test_the_peer_is_the_next_incarnation(me: int, alive: list[int], peer: int | None) -> None:
    assert peer_of(me, alive) == peer


@pytest.mark.parametrize(
    ("me", "before", "alive", "ended"),
    [
        (1, [1, 2, 3], [1, 2, 3], []),
        (1, [1, 2, 3], [1, 3], [2]),
        # Neighbours, and a watcher with its peer.
        (1, [1, 2, 3, 4], [1, 4], [2, 3]),
        # Somebody else's to tell.
        (1, [1, 2, 3, 4], [1, 2, 4], []),
        (4, [1, 2, 3, 4], [3, 4], [1, 2]),
        (1, [1, 2, 3], [1], [2, 3]),
        # Who came meanwhile changes nothing.
        (1, [1, 2], [1, 3], [2]),
    ],
)
def test_ends_are_told_by_the_survivor_before_them(
    me: int, before: list[int], alive: list[int], ended: list[int]
) -> None:
    assert ended_beside(me, before, alive) == ended


@given(st.sets(st.integers(0, 50), min_size=1), st.data())
def test_each_end_is_told_by_exactly_one_survivor(before: set[int], data: st.DataObject) -> None:
    alive = data.draw(st.sets(st.sampled_from(sorted(before)), min_size=1))
    told = [ended for survivor in alive for ended in ended_beside(survivor, before, alive)]
    assert sorted(told) == sorted(before - alive)


@given(st.sets(st.integers(0, 50), min_size=2))
def test_the_peers_are_one_ring(alive: set[int]) -> None:
    start = min(alive)
    seen = [start]
    while (peer := peer_of(seen[-1], alive)) != start:
        assert peer is not None
        seen.append(peer)
    assert sorted(seen) == sorted(alive)
