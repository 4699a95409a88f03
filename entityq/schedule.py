"""A schedule as the code declares it: when which message is sent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from entityq.cron_plan import CatchUp, Overlap
from entityq.cron_times import CronTimes
from entityq.errors import EntityQError
from entityq.message import BoundMessage
from entityq.receipt import Receipt
from entityq.registration import TASK_MESSAGE
from entityq.task import Task

# Frozen: the header that a run has its instant in, as ISO 8601, and what its primary key begins with.
INSTANT = "entityq-instant"
KEY = "$cron"

Target = Task[..., Any, Any] | BoundMessage[..., Any]


@dataclass(frozen=True, slots=True)
class CronOptions:
    """As given to `@app.cron`; `grace` is in seconds, `instant` names a parameter."""

    expression: str
    timezone: str = "UTC"
    name: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict[str, object])
    instant: str | None = None
    catch_up: str = CatchUp.LAST.value
    overlap: str = Overlap.ALLOW.value
    grace: float = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """`instant`: the parameter that gets the instant of a run."""

    name: str
    group: str
    times: CronTimes
    message: BoundMessage[..., Any]
    arguments: Mapping[str, object]
    instant: str | None
    catch_up: CatchUp
    overlap: Overlap
    grace: timedelta

    async def send(self, instant: datetime, run: str) -> Receipt[Any]:
        """One run; `run` tells it from the others. Raises EntityQError."""
        arguments, key = {**self.arguments}, self.message.definition.primary_key
        if self.instant is not None:
            arguments[self.instant] = run if key == self.instant else instant
        options = self.message.options(headers={INSTANT: instant.isoformat()})
        if key is None:
            options = options.options(primary_key=f"{KEY}:{self.name}:{run}")
        return await options.send(**arguments)


def new_schedule(target: Target, options: CronOptions) -> Schedule:
    """Raises TypeError for what cannot work."""
    if not _is_target(target):
        raise TypeError(
            f"@app.cron is for tasks (@app.task below it) and messages of one entity, not for {target!r}"
        )
    message = target.options() if isinstance(target, Task) else target
    entity, definition = message.entity, message.definition
    known_as = entity.type if definition.name == TASK_MESSAGE else f"{entity.type}.{definition.name}"
    name = known_as if options.name is None else options.name
    _require_persisted(f"the schedule {name}", message, options)
    try:
        times = CronTimes(options.expression, options.timezone)
        catch_up, overlap = CatchUp(options.catch_up), Overlap(options.overlap)
    except ValueError as error:
        raise TypeError(f"the schedule {name}: {error}") from error
    if not 0 <= options.grace <= 86_400:
        raise TypeError(f"the schedule {name}: grace is from 0 seconds to a day, not {options.grace}")
    schedule = Schedule(
        name=name,
        group=entity.shard_group,
        times=times,
        message=message,
        arguments=dict(options.arguments),
        instant=options.instant,
        catch_up=catch_up,
        overlap=overlap,
        grace=timedelta(seconds=options.grace),
    )
    _require_arguments(schedule)
    return schedule


def _is_target(target: object) -> bool:
    return isinstance(target, Task | BoundMessage)


def _require_persisted(what: str, message: BoundMessage[..., Any], options: CronOptions) -> None:
    definition = message.definition
    if not definition.persisted:
        raise TypeError(f"{what}: {definition.name} of {message.entity.type} is volatile, and could be lost")
    if definition.primary_key not in (None, options.instant):
        raise TypeError(
            f"{what}: each run needs a primary key of its own, so instant must name {definition.primary_key}"
        )


def _require_arguments(schedule: Schedule) -> None:
    payload, arguments = schedule.message.definition.payload, {**schedule.arguments}
    if schedule.instant is not None:
        key = schedule.message.definition.primary_key == schedule.instant
        arguments[schedule.instant] = "run" if key else datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    try:
        payload.plain(payload.bind((), arguments))
    except EntityQError as error:
        raise TypeError(f"the schedule {schedule.name}: {error.what}") from error
