"""What becomes of instants whose turn comes late."""

from datetime import UTC, datetime, timedelta

import pytest

from entityq.cron_plan import CatchUp, Firing, begin, plan
from entityq.cron_times import CronTimes

MINUTES = CronTimes("* * * * *", "UTC")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GRACE = timedelta(seconds=30)


def minutes(number: int) -> timedelta:
    return timedelta(minutes=number)


@pytest.mark.parametrize("catch_up", CatchUp)
@pytest.mark.parametrize("late", [timedelta(seconds=-1), timedelta(0), GRACE])
def test_in_time(catch_up: CatchUp, late: timedelta) -> None:
    """Also where the clock went back."""
    assert plan(MINUTES, NOON, NOON + late, catch_up, GRACE) == Firing(NOON, NOON)


def test_all_are_fired_one_after_the_other() -> None:
    assert plan(MINUTES, NOON, NOON + minutes(90), CatchUp.ALL, GRACE) == Firing(NOON, NOON)


def test_the_last_one_stands_for_all() -> None:
    now = NOON + timedelta(minutes=90, seconds=45)
    assert plan(MINUTES, NOON, now, CatchUp.LAST, GRACE) == Firing(NOON + minutes(90), NOON + minutes(90))
    daily = CronTimes("0 12 * * *", "UTC")
    assert plan(daily, NOON, NOON + minutes(90), CatchUp.LAST, GRACE) == Firing(NOON, NOON)


@pytest.mark.parametrize(("seconds", "following"), [(45, 91), (20, 90)])
def test_skipped_ones_end_where_the_grace_begins(seconds: int, following: int) -> None:
    now = NOON + timedelta(minutes=90, seconds=seconds)
    firing = plan(MINUTES, NOON, now, CatchUp.SKIP, GRACE)
    assert firing.instant is None
    assert MINUTES.after(firing.done) == NOON + minutes(following)


def test_where_an_expression_begins() -> None:
    assert begin(None, NOON, GRACE) == NOON
    assert begin(NOON - minutes(60), NOON, GRACE) == NOON - GRACE
    assert begin(NOON - timedelta(seconds=5), NOON, GRACE) == NOON - timedelta(seconds=5)
