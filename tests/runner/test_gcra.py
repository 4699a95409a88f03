"""The decision of a rate limit, and the turns that it lets start."""

import math

from hypothesis import given
from hypothesis import strategies as st

from entityq.runner.gcra import Pace, take

paces = st.builds(Pace, st.floats(min_value=1e-3, max_value=100.0), st.integers(min_value=1, max_value=50))
asks = st.lists(
    st.tuples(st.floats(min_value=0.0, max_value=50.0), st.integers(min_value=1, max_value=60)), max_size=40
)


@given(paces, asks)
def test_in_any_time_no_more_start_than_a_burst_and_its_share(
    pace: Pace, asks: list[tuple[float, int]]
) -> None:
    now, arrival = 1_000.0, 0.0
    started: list[float] = []
    for pause, wanted in asks:
        now += pause
        taken = take(pace, arrival, now, wanted)
        assert 0 <= taken.granted <= wanted
        arrival = taken.arrival
        started += [now] * taken.granted
    for first, begin in enumerate(started):
        for last in range(first, len(started)):
            most = pace.burst + (started[last] - begin) / pace.interval
            assert last - first + 1 <= most + 1e-3


@given(paces, st.integers(min_value=1, max_value=200))
def test_whoever_comes_when_told_to_gets_the_next_start(pace: Pace, wanted: int) -> None:
    """So that the whole rate is used."""
    now, arrival, got = 1_000.0, 0.0, 0
    while got < wanted:
        taken = take(pace, arrival, now, wanted - got)
        assert taken.granted >= 1
        got, arrival = got + taken.granted, taken.arrival
        now += taken.wait if got < wanted else 0.0
    assert now - 1_000.0 <= max(0, wanted - pace.burst) * pace.interval + 1e-3


@given(paces, st.floats(min_value=0, max_value=1e9), st.floats(min_value=0, max_value=1e9))
def test_nobody_waits_for_longer_than_a_burst_whatever_the_clock_says(
    pace: Pace, arrival: float, now: float
) -> None:
    assert take(pace, arrival, now, 1).wait <= pace.interval * (1 + 1e-3) + 1e-3


@given(paces, st.integers(min_value=1, max_value=100))
def test_shares_are_no_more_than_the_whole(pace: Pace, runners: int) -> None:
    share = pace.shared(runners)
    assert math.isclose(runners / share.interval, 1 / pace.interval)
    assert share.burst >= 1
    assert share.burst * runners <= max(pace.burst, runners)
