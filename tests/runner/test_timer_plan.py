"""When the owner of shards looks for timers that are due: a model of clocks, latencies and notifications."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.postgres.channels import LOOK_FOR_TIMERS_EVERY, TOLD_OF_TIMERS_WITHIN
from entityq.postgres.timers import Fired
from entityq.runner.timer_plan import GAP, PAUSE_AFTER_FAILURE, TimerPlan

AHEAD = 1e9


def answer(now: float, due: float | None = None, *, more: bool = False) -> Fired:
    return Fired({}, now + AHEAD, None if due is None else due + AHEAD, more)


def looked(due: float | None = None, *, more: bool = False) -> TimerPlan:
    """After a look from 100.0 to 100.2, which read the clock at once."""
    plan = TimerPlan()
    plan.begin()
    plan.looked(100.0, 100.2, answer(100.0, due, more=more))
    return plan


def test_the_first_look_is_at_once() -> None:
    plan = TimerPlan()
    plan.heard(AHEAD + 50)
    assert plan.next_look == -math.inf


def test_the_next_one_is_when_the_next_timer_is_due_by_the_database() -> None:
    assert looked(103.0).next_look == pytest.approx(103.0)


def test_without_timers_it_looks_now_and_then() -> None:
    assert looked().next_look == pytest.approx(100.2 + LOOK_FOR_TIMERS_EVERY)
    assert looked(1e6).next_look == looked().next_look


def test_what_is_due_already_is_looked_for_after_a_moment() -> None:
    assert looked(100.1).next_look == pytest.approx(100.2 + GAP)
    assert looked(103.0, more=True).next_look == pytest.approx(100.2 + GAP)


def test_only_an_earlier_timer_changes_it() -> None:
    plan = looked(103.0)
    plan.heard(AHEAD + 104.0)
    assert plan.next_look == pytest.approx(103.0)
    plan.heard(AHEAD + 102.0)
    assert plan.next_look == pytest.approx(102.0)
    plan.look_by(101.0)
    assert plan.next_look == pytest.approx(101.0)


def test_what_is_heard_during_a_look_may_not_be_in_it() -> None:
    plan = looked(103.0)
    plan.begin()
    plan.heard(AHEAD + 103.6)
    plan.looked(103.0, 103.1, answer(103.0))
    assert plan.next_look == pytest.approx(103.6)


def test_a_failure_is_followed_by_a_pause() -> None:
    plan = looked(103.0)
    plan.begin()
    plan.failed(103.5)
    plan.heard(AHEAD + 103.5)
    assert plan.next_look == pytest.approx(103.5 + PAUSE_AFTER_FAILURE)


@given(
    timers=st.lists(
        st.tuples(st.floats(0, 30, allow_nan=False), st.floats(0, 30, allow_nan=False)), max_size=30
    ),
    latencies=st.lists(st.floats(0.0005, 0.02, allow_nan=False), min_size=1, max_size=20),
)
def test_every_timer_is_fired_in_time(timers: list[tuple[float, float]], latencies: list[float]) -> None:
    """Each is set at one time, and due so many seconds later. A look takes its latency, and reads in the middle."""
    slowest = max(latencies)
    waiting = sorted((at, at + delay) for at, delay in timers)
    plan, now, looks = TimerPlan(), 0.0, 0
    stored: list[float] = []
    while waiting or stored:
        when = max(now, plan.next_look)
        while waiting and waiting[0][0] <= when:  # set before the look begins; perhaps it changes when
            at, due = waiting.pop(0)
            stored.append(due)
            if due - at < TOLD_OF_TIMERS_WITHIN:
                plan.heard(due + AHEAD)
            when = max(at, now, plan.next_look)
        plan.begin()
        latency = latencies[looks % len(latencies)]
        snapshot = when + latency / 2
        late = [snapshot - due for due in stored if due <= snapshot]
        assert max(late, default=0) <= GAP + 2 * slowest + 1e-3
        stored = [due for due in stored if due > snapshot]
        now, looks = when + latency, looks + 1
        plan.looked(when, now, answer(snapshot, min(stored, default=None)))
    # The looks that the timers need, those of the passing time, and those that were early.
    assert looks <= 2 * len(timers) + 60 / LOOK_FOR_TIMERS_EVERY + 2
