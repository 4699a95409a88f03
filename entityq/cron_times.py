"""The instants of a cron expression in a time zone: always in UTC, so that their order is that of time."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

# More than clocks are put back by.
_MOST_REPEATED = timedelta(hours=3)


class CronTimes:
    """Five fields, or six with seconds first, as Debian's cron reads them.

    Where clocks change, an expression with fixed hours and minutes has one instant a day: a local time that does
    not exist stands for the first one after the gap, one that comes twice for its first time. Where minutes or
    hours begin with `*`, it is each instant whose local time fits.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        """Raises ValueError for an expression or a time zone that cannot be read."""
        self.expression = " ".join(expression.split())
        self.timezone = timezone
        try:
            self._zone = ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{timezone!r} is no time zone, as Europe/Berlin is") from error
        try:
            CronSim(self.expression, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(f"{expression!r} is no cron expression: {error}") from error

    def after(self, moment: datetime) -> datetime | None:
        """The first instant later than that; None: there is none in 50 years."""
        return next((at for at in self._walk(moment, back=False) if at > moment), None)

    def latest(self, moment: datetime) -> datetime | None:
        """The last instant that is not later; None: there is none in 50 years."""
        # Backwards, a fraction of a second counts as the first step.
        start = moment if moment.microsecond else moment + timedelta(microseconds=1)
        return next((at for at in self._walk(start, back=True) if at <= moment), None)

    def _walk(self, start: datetime, *, back: bool) -> Iterator[datetime]:
        """Where clocks are put back, also what is on the wrong side of the start: the callers leave that out."""
        local = start.astimezone(self._zone)
        if not self._fixed:
            return (at.astimezone(UTC) for at in CronSim(self.expression, local, reverse=back))
        # By the clock on the wall, as if there were no changes. CronSim has that for five fields only.
        wall = local.replace(tzinfo=None) + (_MOST_REPEATED if back else timedelta(0))
        return (self._instant(at) for at in CronSim(self.expression, wall, reverse=back))

    @property
    def _fixed(self) -> bool:
        *_, minutes, hours = self.expression.split()[:-3]
        return not minutes.startswith("*") and not hours.startswith("*")

    def _instant(self, wall: datetime) -> datetime:
        at = wall.replace(tzinfo=self._zone, fold=0)
        if not _exists(at):
            at = at.replace(second=0)
            while not _exists(at):
                at += timedelta(minutes=1)
        return at.astimezone(UTC)


def _exists(local: datetime) -> bool:
    return local.astimezone(UTC).astimezone(local.tzinfo).replace(tzinfo=None) == local.replace(tzinfo=None)
