from itertools import pairwise

import pytest

from entityq.outage import CALM, FIRST_PAUSE, LONGEST_PAUSE, Outage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level("INFO")
    return Clock()


def test_an_outage_has_a_begin_and_an_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("it.failed", "it.works_again", "slower", clock=clock)
    outage.worked()
    for shard in range(100):
        clock.now += shard / 1000
        outage.failed(TimeoutError())
    clock.now = 102.0
    outage.worked()
    outage.worked()
    assert caplog.messages == [
        "it.failed: no answer in time; slower",
        "it.works_again after 2.0 s, 100 failures",
    ]


def test_a_failure_of_many_at_once_says_of_how_many(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("it.failed", "it.works_again", "slower", clock=clock)
    outage.failed(OSError("gone"), 100)
    assert caplog.messages == ["it.failed: gone; slower (100 times)"]


@pytest.mark.parametrize("comes_and_goes", [False, True])
def test_one_that_lasts_is_told_of_again_ever_more_rarely(
    clock: Clock, caplog: pytest.LogCaptureFixture, comes_and_goes: bool
) -> None:
    outage = Outage("it.failed", "it.works_again", "slower", clock=clock)
    told: list[float] = []
    while clock.now < 5_000:
        caplog.clear()
        outage.failed(OSError("gone"))
        told += [clock.now] * sum("failed" in line for line in caplog.messages)
        if comes_and_goes:
            outage.worked()
        clock.now += 1
    pauses = [after - before for before, after in pairwise(told)]
    assert pauses == [FIRST_PAUSE * 2**n for n in range(5)] + [LONGEST_PAUSE] * (len(pauses) - 5)
    assert len(pauses) > 7


def test_after_a_calm_the_next_one_is_another(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("it.failed", "it.works_again", "slower", clock=clock)
    outage.failed(OSError("gone"))
    outage.worked()
    clock.now += CALM - 1
    outage.failed(OSError("still the first"))
    outage.worked()
    clock.now += CALM
    outage.failed(OSError("again"))
    outage.worked()
    assert caplog.messages == [
        "it.failed: gone; slower",
        "it.works_again after 0.0 s, 1 failures",
        "it.failed: again; slower",
        "it.works_again after 0.0 s, 1 failures",
    ]
