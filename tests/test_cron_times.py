"""Instants of cron expressions. In Berlin clocks change on 29 March and 25 October 2026, at 01:00 UTC."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entityq.cron_times import CronTimes

BERLIN = "Europe/Berlin"
SPRING = datetime(2026, 3, 29, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 25, tzinfo=UTC)


def instants(expression: str, day: datetime, timezone: str = BERLIN) -> list[str]:
    """Those in the four hours from midnight UTC, 01:00 or 02:00 in Berlin, on."""
    times, found, at = CronTimes(expression, timezone), list[str](), day - timedelta(microseconds=1)
    while (later := times.after(at)) is not None and later < day + timedelta(hours=4):
        found.append(later.strftime("%H:%M:%S"))
        at = later
    return found


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *"])
def test_a_local_time_that_does_not_exist_stands_for_the_end_of_the_gap(expression: str) -> None:
    assert instants(expression, SPRING) == ["01:00:00"]


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *"])
def test_a_local_time_that_comes_twice_is_the_first_one(expression: str) -> None:
    assert instants(expression, AUTUMN) == ["00:30:00"]
    # Seen from between the two, too.
    later = CronTimes(expression, BERLIN).after(AUTUMN + timedelta(hours=1, minutes=10))
    assert later == AUTUMN + timedelta(days=1, hours=1, minutes=30)


def test_instants_of_every_hour_go_with_time_and_not_with_the_clock() -> None:
    hours = ["00:00:00", "01:00:00", "02:00:00", "03:00:00"]
    assert instants("0 * * * *", SPRING) == hours
    assert instants("0 * * * *", AUTUMN) == hours


def test_steps_within_a_fixed_hour_are_local_times() -> None:
    assert instants("*/30 2 * * *", SPRING) == []
    assert instants("*/30 2 * * *", AUTUMN) == ["00:00:00", "00:30:00", "01:00:00", "01:30:00"]


def test_several_times_in_one_gap_are_one_instant() -> None:
    assert instants("0,30 2 * * *", SPRING) == ["01:00:00"]


def test_seconds() -> None:
    times = CronTimes("*/20 * * * * *", "UTC")
    assert times.after(datetime(2026, 1, 1, 0, 0, 20, 1, UTC)) == datetime(2026, 1, 1, 0, 0, 40, tzinfo=UTC)
    assert times.latest(datetime(2026, 1, 1, 0, 0, 20, tzinfo=UTC)) == datetime(
        2026, 1, 1, 0, 0, 20, tzinfo=UTC
    )
    assert times.latest(datetime(2026, 1, 1, 0, 0, 39, 9, UTC)) == datetime(2026, 1, 1, 0, 0, 20, tzinfo=UTC)


def test_no_instant_at_all() -> None:
    never = CronTimes("* * */20 * 1L", "UTC")
    assert (never.after(SPRING), never.latest(SPRING)) == (None, None)


@pytest.mark.parametrize(
    ("expression", "timezone", "what"),
    [
        ("* * * *", "UTC", "no cron expression: Wrong number of fields"),
        ("61 * * * *", "UTC", "no cron expression: Bad minute"),
        ("* * * * *", "Europe/Bärlin", "no time zone"),
        ("* * * * *", "../etc/passwd", "no time zone"),
        ("* * * * *", "", "no time zone"),
    ],
)
def test_what_cannot_be_read(expression: str, timezone: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        CronTimes(expression, timezone)


@settings(max_examples=300, deadline=None)
@given(
    expression=st.sampled_from(
        ["30 2 * * *", "0,45 1-3 * * *", "15 30 2 * * *", "*/7 * * * *", "0 */2 * * *", "59 59 1,2,3 * * *"]
    ),
    timezone=st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"]),
    # A year, with all its changes of clocks.
    moment=st.timedeltas(timedelta(0), timedelta(days=365)).map(lambda since: SPRING + since),
)
def test_back_and_forth_agree(expression: str, timezone: str, moment: datetime) -> None:
    times = CronTimes(expression, timezone)
    after = times.after(moment)
    assert after is not None
    assert after > moment
    assert times.latest(after) == after
    before = times.latest(after - timedelta(microseconds=1))
    assert before is not None
    assert before <= moment
    assert times.after(before) == after
