"""Backoff as pure functions."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.retry import TRANSIENT, RetryPolicy, delay, next_delay

POLICIES = st.builds(
    RetryPolicy,
    initial=st.floats(0.001, 1),
    factor=st.floats(1, 10),
    maximum=st.floats(1, 60),
    total=st.floats(0, 60),
    attempts=st.none() | st.integers(1, 20),
)


def longest() -> float:
    return 1.0


def half() -> float:
    return 0.5


def test_ceilings_double_up_to_the_maximum() -> None:
    ceilings = [delay(TRANSIENT, attempt, longest) for attempt in range(1, 10)]
    assert ceilings == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_jitter_is_full() -> None:
    assert delay(TRANSIENT, 3, half) == 0.1
    assert delay(TRANSIENT, 3, lambda: 0.0) == 0


@given(POLICIES, st.integers(1, 100_000), st.floats(0, 1, exclude_max=True))
def test_delay_is_within_zero_and_the_maximum(policy: RetryPolicy, attempt: int, drawn: float) -> None:
    assert 0 <= delay(policy, attempt, lambda: drawn) <= policy.maximum


@given(POLICIES, st.floats(0, 1, exclude_max=True))
def test_all_waits_together_are_within_the_total(policy: RetryPolicy, drawn: float) -> None:
    elapsed = 0.0
    for attempt in range(1, 50):
        wait = next_delay(policy, attempt, elapsed, lambda: drawn)
        if wait is None:
            break
        elapsed += wait
    assert elapsed <= policy.total or math.isclose(elapsed, policy.total)


def test_gives_up_after_the_total() -> None:
    policy = TRANSIENT
    assert next_delay(policy, 1, 4.75, longest) == 0.05
    assert next_delay(policy, 4, 4.75, longest) == 0.25
    assert next_delay(policy, 1, 5.0, longest) is None


def test_gives_up_after_the_attempts() -> None:
    policy = RetryPolicy(initial=0.05, factor=2.0, attempts=3)
    assert next_delay(policy, 2, 0, longest) == 0.1
    assert next_delay(policy, 3, 0, longest) is None


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("initial", lambda: RetryPolicy(initial=0)),
        ("initial", lambda: RetryPolicy(initial=math.nan)),
        ("factor", lambda: RetryPolicy(factor=0.5)),
        ("factor", lambda: RetryPolicy(factor=math.inf)),
        ("maximum", lambda: RetryPolicy(initial=0.05, maximum=0.01)),
        ("maximum", lambda: RetryPolicy(maximum=math.inf)),
        ("total", lambda: RetryPolicy(total=-1)),
        ("total", lambda: RetryPolicy(total=math.nan)),
        ("attempts", lambda: RetryPolicy(attempts=0)),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name: str, make: Callable[[], RetryPolicy]) -> None:
    with pytest.raises(ValueError, match=name):
        make()
