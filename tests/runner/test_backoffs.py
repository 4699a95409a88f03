"""Entities in backoff: when they are due, and how many there may be."""

import asyncio
import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from entityq.address import Address
from entityq.runner.backoffs import MOST_LEFT_OVER, Backoffs
from entityq.runner.deferrals import LOOK_AGAIN, REMEMBER, Deferrals

A, B = Address("A", "a"), Address("B", "b")


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100))))
def test_each_is_due_once_at_its_last_time(begun: list[tuple[int, float]]) -> None:
    backoffs = Backoffs()
    for number, until in begun:
        backoffs.begin((number, A), until)
    expected = {(number, A): until for number, until in begun}
    assert len(backoffs) == len(expected)
    due = [(now, entity) for now in range(101) for entity in backoffs.pop_due(float(now))]
    assert {entity for _, entity in due} == set(expected)
    assert all(now - 1 < expected[entity] <= now for now, entity in due)
    assert all(expected[first] <= expected[second] for (_, first), (_, second) in pairwise(due))
    assert backoffs.next_due is None


def test_a_wait_without_an_end_is_never_due() -> None:
    backoffs = Backoffs()
    backoffs.begin((1, A), float("inf"))
    assert backoffs.next_due is None
    assert backoffs.pop_due(1e12) == []
    assert (1, A) in backoffs


async def test_an_entity_in_backoff_is_deferred_and_nobody_feeds_it_before_its_time() -> None:
    deferrals = Deferrals()
    deferrals.defer(1, A)
    deferrals.begin_read(1, A)
    deferrals.back_off(1, A, 10.0)
    # What was read before the failure does not bring it back.
    assert not deferrals.end_read(1, A, everything=True)
    deferrals.defer(1, A)
    assert (1, A) in deferrals
    assert deferrals.oldest(5) == []
    assert len(deferrals.hashes(1)) == 1
    assert deferrals.end_backoffs(9.0) == 10.0
    assert deferrals.end_backoffs(10.0) is None
    assert deferrals.oldest(5) == [(1, A)]
    deferrals.back_off(1, A, 20.0)
    deferrals.drop_shard(1)
    assert (1, A) not in deferrals
    assert deferrals.end_backoffs(30.0) is None
    assert deferrals.oldest(5) == []


async def test_they_are_bounded_and_no_part_of_the_other_bound() -> None:
    deferrals = Deferrals(limit=1, max_backoffs=2)
    deferrals.back_off(1, A, 10.0)
    await asyncio.wait_for(deferrals.below_limit(), 1)
    deferrals.back_off(2, A, 20.0)
    reading = asyncio.create_task(deferrals.below_limit())
    await asyncio.sleep(0)
    assert not reading.done()
    deferrals.drop_shard(2)
    await asyncio.wait_for(reading, 1)


def test_waits_that_end_before_their_time_leave_nothing() -> None:
    backoffs = Backoffs()
    for number in range(10 * MOST_LEFT_OVER):
        backoffs.begin((number, A), 1e9)
        backoffs.end((number, A))
    backoffs.begin((1, A), 5.0)
    assert backoffs.next_due == 5.0
    assert backoffs.left_over <= MOST_LEFT_OVER


async def test_a_signal_counts_against_what_was_read_before_it() -> None:
    now = 100.0
    deferrals = Deferrals(clock=lambda: now)
    deferrals.back_off(1, A, math.inf, as_of=99.0)
    deferrals.signalled(1, A)
    assert deferrals.oldest(5) == [(1, A)]
    # Of a read that nobody knows the time of, and of a statement that was sent before.
    for as_of in (None, 99.0):
        deferrals.back_off(1, A, math.inf, as_of=as_of)
        assert deferrals.end_backoffs(now) == now + LOOK_AGAIN
    # A statement that was sent afterwards knows better; and so does every read after a while.
    deferrals.back_off(1, A, math.inf, as_of=100.5)
    assert deferrals.end_backoffs(now) is None or not deferrals.oldest(5)
    deferrals.signalled(2, B)
    now += REMEMBER + 1
    deferrals.signalled(2, A)
    deferrals.back_off(2, B, math.inf)
    deferrals.end_backoffs(1e9)
    assert deferrals.in_backoff(2, B)
    assert deferrals.in_backoff(1, A)
