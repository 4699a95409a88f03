"""The system entity type that fires schedules: one entity each, whose turn sends the run and its next timer.

So a schedule lives where its shard does, and what is true of turns is true of it: one at a time, wholly or not at
all, by whoever holds the lease. Its owner's code decides what the schedule is; nobody else's does.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from types import MappingProxyType
from typing import ClassVar, Protocol, cast

from entityq.cron_plan import Overlap, begin, plan
from entityq.definition import EntityDefinition
from entityq.entity import Entity, message
from entityq.failure import Failure
from entityq.ports import Home
from entityq.registration import EntityOptions, define_entity
from entityq.retry import RetryPolicy
from entityq.schedule import Schedule

log = logging.getLogger(__name__)

# Frozen: the type is `_cron.<group>`, the entity's id the schedule's name.
PREFIX = "_cron."
# Seconds for which its own requests are kept.
KEPT = 60.0
# A schedule goes on when what was in its way has gone.
RETRY = RetryPolicy(initial=0.1, factor=2.0, maximum=5.0, total=inf, attempts=None)


@dataclass(frozen=True, slots=True)
class Seen:
    """The time by the database's clock, and whether the request that was asked for has no reply."""

    now: datetime
    unanswered: bool


class Desk(Protocol):
    """Where a schedule finds out what is not in its state."""

    async def look(self, request_id: int) -> Seen: ...


class NoDesk:
    """Without servers, as in entityq.testing."""

    async def look(self, request_id: int) -> Seen:
        return Seen(datetime.now(UTC), unanswered=False)


class UnknownSchedule(Failure):
    """The code of the runner that owns the schedule's shard does not have it."""

    name: str


class Schedules(Entity):
    """The entity type of the schedules of one shard group. `app.schedule("report")` is the handle of one.

    expression, timezone: of what is armed; empty when the code of the owner has no such schedule.
    done: instants up to this one are not fired any more; armed: the request that fires the one at next_at.
    last_at, last_request: the last run. overlapped: instants left out because the run before them went on.
    """

    expression: str = ""
    timezone: str = ""
    done: datetime | None = None
    next_at: datetime | None = None
    armed: int = 0
    paused: bool = False
    last_at: datetime | None = None
    last_request: int = 0
    overlapped: int = 0

    _schedules: ClassVar[Mapping[str, Schedule]] = MappingProxyType({})
    _desk: ClassVar[Desk] = NoDesk()

    @classmethod
    def declared(cls) -> Mapping[str, Schedule]:
        """By the code of this process."""
        return cls._schedules

    @message(keep=KEPT, keep_keys=KEPT)
    async def declare(self) -> None:
        """From the owner of the shard, when it has become it."""
        schedule = self._schedules.get(self.id)
        if schedule is None:  # the owner is another one by now
            return
        seen = await self._desk.look(self.armed)
        changed = self._adopt(schedule, seen.now)
        if not self.paused and (changed or not seen.unanswered):
            await self._arm(schedule)

    @message(keep=KEPT, keep_keys=KEPT)
    async def fire(self) -> None:
        """A timer. One that was overtaken by a pause or another expression does nothing."""
        if self.context.request_id != self.armed or self.next_at is None:
            return
        schedule = self._schedules.get(self.id)
        if schedule is None:
            log.warning("cron.stopped name=%s: this runner's code has no such schedule", self.id)
            self.expression = self.timezone = ""
            self._disarm()
            return
        seen = await self._desk.look(self.last_request)
        if not self._adopt(schedule, seen.now):
            await self._fire(schedule, self.next_at, seen)
        await self._arm(schedule)

    @message(keep=KEPT, keep_keys=KEPT)
    async def pause(self) -> None:
        """No instant is fired until `resume`."""
        self.paused = True
        self._disarm()

    @message(keep=KEPT, keep_keys=KEPT)
    async def resume(self) -> None:
        """From the next instant on; those of the pause are not caught up with."""
        schedule = self._require_schedule()
        if not self.paused:
            return
        now = (await self._desk.look(0)).now
        self.paused = False
        self._adopt(schedule, now)
        self.done = now if self.done is None else max(self.done, now)
        await self._arm(schedule)

    @message(keep=KEPT, keep_keys=KEPT)
    async def run(self) -> int:
        """One more run, now, whatever the schedule says; returns its request id."""
        schedule = self._require_schedule()
        now = (await self._desk.look(0)).now
        return await self._send(schedule, now, now.isoformat())

    # ----- one instant

    async def _fire(self, schedule: Schedule, armed: datetime, seen: Seen) -> None:
        firing = plan(schedule.times, armed, seen.now, schedule.catch_up, schedule.grace)
        if firing.instant != armed:
            log.warning("cron.missed name=%s from=%s to=%s", self.id, armed, firing.done)
        if firing.instant is not None:
            if seen.unanswered and schedule.overlap is Overlap.SKIP:
                log.warning("cron.overlapped name=%s instant=%s", self.id, firing.instant)
                self.overlapped += 1
            else:
                await self._send(schedule, firing.instant, firing.instant.isoformat())
        self.done = firing.done

    async def _send(self, schedule: Schedule, instant: datetime, run: str) -> int:
        receipt = await schedule.send(instant, run)
        self.last_at, self.last_request = instant, receipt.request_id
        return receipt.request_id

    # ----- what is armed

    def _adopt(self, schedule: Schedule, now: datetime) -> bool:
        """Whether the owner's code has another expression than what is armed."""
        times = schedule.times
        if (self.expression, self.timezone) == (times.expression, times.timezone):
            return False
        self.expression, self.timezone = times.expression, times.timezone
        self.done = begin(self.done, now, schedule.grace)
        return True

    async def _arm(self, schedule: Schedule) -> None:
        self._disarm()
        if self.done is not None:
            self.next_at = schedule.times.after(self.done)
        if self.next_at is not None:
            receipt = await self.fire.options(eta=self.next_at).send()
            self.armed = receipt.request_id

    def _disarm(self) -> None:
        self.next_at, self.armed = None, 0

    def _require_schedule(self) -> Schedule:
        """Raises UnknownSchedule."""
        schedule = self._schedules.get(self.id)
        if schedule is None:
            raise UnknownSchedule(name=self.id)
        return schedule


def define_schedules(
    group: str, schedules: Mapping[str, Schedule], home: Home | None = None
) -> type[Schedules]:
    """The type of a group; `schedules` may still grow. Without a home they cannot be armed."""

    class OfGroup(Schedules):
        _schedules = schedules

    options = EntityOptions(f"{PREFIX}{group}", shard_group=group, retry=RETRY)
    OfGroup.__definition__ = define_entity(OfGroup, options)
    if home is not None:
        OfGroup.__home__ = home
    return OfGroup


def equipped(
    definitions: Mapping[str, EntityDefinition], types: Iterable[str], desk: Desk
) -> dict[str, EntityDefinition]:
    """For a runner: schedules have the desk, and those of the cluster's `types` that its code does not have any
    more are stopped."""
    found = dict(definitions)
    for type_ in types:
        if type_.startswith(PREFIX) and type_ not in found:
            found[type_] = define_schedules(type_.removeprefix(PREFIX), {}).__definition__
    for type_, definition in found.items():
        if issubclass(definition.cls, Schedules):
            found[type_] = replace(definition, cls=_at_desk(definition.cls, desk))
    return found


def _at_desk(cls: type[Schedules], desk: Desk) -> type[Schedules]:
    return cast("type[Schedules]", type("AtDesk", (cls,), {"_desk": desk, "__module__": __name__}))
