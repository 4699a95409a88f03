"""`app.cron`: the schedules of an app, declared and handled."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from entityq.definition import EntityDefinition
from entityq.message import BoundMessage
from entityq.ports import Home
from entityq.schedule import CronOptions, Schedule, new_schedule
from entityq.schedules import Schedules, define_schedules
from entityq.task import Task

S = TypeVar("S", bound=Task[..., Any, Any] | BoundMessage[..., Any])


class Cron:
    """Of one app. `register` takes the entity types that schedules live in, one for each shard group."""

    def __init__(self, home: Home, register: Callable[[EntityDefinition], None]) -> None:
        self._home = home
        self._register = register
        self._groups: dict[str, dict[str, Schedule]] = {}
        self._types: dict[str, type[Schedules]] = {}

    def __call__(
        self,
        expression: str,
        *,
        timezone: str = "UTC",
        name: str | None = None,
        arguments: Mapping[str, object] = MappingProxyType({}),
        instant: str | None = None,
        catch_up: Literal["skip", "last", "all"] = "last",
        overlap: Literal["allow", "skip"] = "allow",
        grace: float = 30.0,
    ) -> Callable[[S], S]:
        """Sends a task (`@app.cron(...)` above `@app.task`), or a message of one entity
        (`app.cron("0 3 * * *")(Ledger.at("main").close)`), at each instant of a cron expression; once in the cluster.

        expression: five fields, or six that begin with seconds.
        timezone: its name, as Europe/Berlin, in which the expression is read.
        name: unique in the app, by default that of the task, or `Ledger.close`.
        arguments: what it is sent with. instant: the parameter that gets the instant, a datetime in UTC (text where
            it is the primary key).
        catch_up: of the instants that were missed while nobody was there to fire them, fire none ("skip"), the
            newest, or all. grace: by how many seconds an instant may be late before it is missed.
        overlap: "skip" leaves out an instant while the run before has no reply.

        Raises TypeError for what cannot work.
        """
        options = CronOptions(expression, timezone, name, arguments, instant, catch_up, overlap, grace)

        def decorate(target: S) -> S:
            self._add(new_schedule(target, options))
            return target

        return decorate

    @property
    def names(self) -> Sequence[str]:
        """Of the schedules that the app declares."""
        return sorted(name for schedules in self._groups.values() for name in schedules)

    def at(self, name: str) -> Schedules:
        """The handle of a schedule: `await app.cron.at("report").pause()`, `.resume()`, `.run()`.

        Raises KeyError for one that the app does not declare.
        """
        for group, schedules in self._groups.items():
            if name in schedules:
                return self._types[group].at(name)
        raise KeyError(name)

    def _add(self, schedule: Schedule) -> None:
        if schedule.name in self.names:
            raise TypeError(
                f"the app already has a schedule {schedule.name}: give this one a name of its own"
            )
        schedules = self._groups.setdefault(schedule.group, {})
        if not schedules:
            cls = define_schedules(schedule.group, schedules, self._home)
            self._register(cls.__definition__)
            self._types[schedule.group] = cls
        schedules[schedule.name] = schedule
