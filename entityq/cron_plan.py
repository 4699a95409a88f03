"""What becomes of an instant of a schedule when its turn comes: a decision without input and output."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from entityq.cron_times import CronTimes


class CatchUp(Enum):
    """What becomes of instants that were missed while nobody could fire them."""

    SKIP = "skip"
    LAST = "last"
    ALL = "all"


class Overlap(Enum):
    """What becomes of an instant while the previous run has no reply."""

    ALLOW = "allow"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Firing:
    """`instant` is to be fired, if there is one; the next one is the first after `done`."""

    instant: datetime | None
    done: datetime


def plan(times: CronTimes, armed: datetime, now: datetime, catch_up: CatchUp, grace: timedelta) -> Firing:
    """Of the instant that was to be fired at `armed`: it is missed when that is longer ago than `grace`."""
    if catch_up is CatchUp.ALL or now - armed <= grace:
        return Firing(armed, armed)
    if catch_up is CatchUp.SKIP:
        return Firing(None, now - grace)
    last = times.latest(now)
    return Firing(armed, armed) if last is None or last < armed else Firing(last, last)


def begin(done: datetime | None, now: datetime, grace: timedelta) -> datetime:
    """Where another expression begins: its instants of before are none of it, but for those of a moment ago,
    which the one before it may have left to it. A new schedule has no moment ago."""
    return now if done is None else max(done, now - grace)
