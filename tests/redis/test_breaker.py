import pytest

from entityq.redis.breaker import COOL_DOWN, THRESHOLD, Breaker, BreakerState, after_failure, allows


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    state = BreakerState()
    for _ in range(THRESHOLD - 1):
        state = after_failure(state, 100.0)
        assert allows(state, 100.0)
    state = after_failure(state, 100.0)
    assert not allows(state, 100.0 + COOL_DOWN - 0.001)
    assert allows(state, 100.0 + COOL_DOWN)


def seen(breaker: Breaker) -> bool:
    """Afresh: it changes with the clock."""
    return breaker.closed


def test_after_the_cool_down_one_try_decides() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(THRESHOLD):
        breaker.failed(OSError())
    assert not seen(breaker)
    clock.now += COOL_DOWN
    assert seen(breaker)
    breaker.failed(OSError())
    assert not seen(breaker)
    clock.now += COOL_DOWN
    breaker.succeeded()
    breaker.failed(OSError())
    assert seen(breaker)


def test_a_success_forgets_the_failures() -> None:
    breaker = Breaker(Clock())
    for _ in range(10 * THRESHOLD):
        breaker.failed(OSError())
        breaker.succeeded()
    assert seen(breaker)


def test_an_outage_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    breaker = Breaker(clock, name="redis.publish", instead="slower")
    for _ in range(10):
        breaker.failed(OSError("gone"))
        clock.now += COOL_DOWN
    breaker.succeeded()
    assert caplog.messages == [
        "redis.publish_failed: gone; slower",
        "redis.publish_works_again after 10.0 s, 10 failures",
    ]
