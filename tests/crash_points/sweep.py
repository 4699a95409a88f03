"""A sweep: a scenario is recorded, and then run again with a fault at each of its points."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.crash_points.cluster import Cluster
from tests.crash_points.listed import POINTS, listed
from tests.crash_points.point import Point
from tests.crash_points.postgres_proxy import PREPARE
from tests.crash_points.scenario import Scenario
from tests.crash_points.visit import Fault, Outcome, Target, Visit

# How the turns of a script fall into batches differs from run to run, so that a point need not be there.
TRIES = 4


@dataclass(frozen=True, slots=True)
class Recorded:
    """`sure`: how often a run comes to each point, at least. `sometimes`: what not every run comes to."""

    sure: Counter[Point]
    sometimes: set[Point]

    def occurrences(self, at_most: int) -> Iterator[tuple[Point, int]]:
        """What a sweep must visit: each point, up to so many times of its coming."""
        for point in sorted(self.sure):
            for occurrence in range(1, min(self.sure[point], at_most) + 1):
                yield point, occurrence


@dataclass(slots=True)
class Swept:
    """Of one scenario and one fault."""

    scenario: str
    fault: Fault
    visited: int = 0
    seconds: float = 0.0
    missed: list[str] = field(default_factory=list[str])
    violations: list[str] = field(default_factory=list[str])


class Sweep:
    """Of one cluster. `seen`: by scenario, every point that any run came to."""

    def __init__(self, cluster: Cluster, say: Callable[[str], object]) -> None:
        self._cluster = cluster
        self._say = say
        self._count = 0
        self.seen: dict[str, set[Point]] = {}

    async def record(self, scenario: Scenario, runs: int = 2) -> Recorded:
        """Every point of the scenario, by what some runs of it have in common."""
        if not scenario.fresh:
            await self._visit(scenario, None)
        traces = [Counter((await self._visit(scenario, None)).trace) for _ in range(runs)]
        common = traces[0]
        for trace in traces[1:]:
            common &= trace
        known = listed(POINTS.read_text()).get(scenario.name, {})
        sure = Counter(
            {each: common[each] for each in common if not _by_chance(each) and known.get(str(each), True)}
        )
        seen = {point for trace in traces for point in trace if not point.step.startswith(PREPARE)}
        return Recorded(sure, seen - set(sure))

    async def sweep(
        self,
        scenario: Scenario,
        fault: Fault,
        points: Iterable[tuple[Point, int]],
        maybe: Iterable[Point] = (),
    ) -> Swept:
        """The fault at each of `points`, at their nth coming, and once at those of `maybe` that come."""
        swept = Swept(scenario.name, fault)
        began = time.monotonic()
        for point, occurrence in points:
            await self._until_reached(scenario, Target(point, occurrence, fault), swept, TRIES)
        for point in maybe:
            await self._until_reached(scenario, Target(point, 1, fault), swept, 1)
        swept.seconds = time.monotonic() - began
        return swept

    async def _until_reached(self, scenario: Scenario, target: Target, swept: Swept, tries: int) -> None:
        where = f"{scenario.name}: {target.fault} {target.point}, occurrence {target.occurrence}"
        began, known = time.monotonic(), len(swept.violations)
        for _ in range(tries):
            try:
                outcome = await self._visit(scenario, target)
            except (AssertionError, TimeoutError) as error:
                swept.violations.append(f"{where}: {error!r}\n{await self._cluster.describe()}")
                await self._cluster.renew()
                break
            swept.violations += [f"{where}: {violation}" for violation in outcome.violations]
            if outcome.reached:
                swept.visited += 1
                break
        else:
            if tries > 1:
                swept.missed.append(where)
        self._say(f"{time.monotonic() - began:6.2f} s  {where}\n")
        for violation in swept.violations[known:]:
            self._say(f"          {violation}\n")

    async def _visit(self, scenario: Scenario, target: Target | None) -> Outcome:
        self._count += 1
        name = f"{scenario.name.replace(' ', '-')}-{self._count}"
        outcome = await Visit(self._cluster, scenario, name, target).run()
        self.seen.setdefault(scenario.name, set()).update(outcome.trace)
        return outcome


def _by_chance(point: Point) -> bool:
    """Which of the pooled connections has to prepare a statement, and what happens once in some seconds."""
    return point.step.startswith(PREPARE) or point.step in {"outbox.estimate_pending", "PING"}


def table(sweeps: Sequence[Swept]) -> str:
    lines = ["scenario      fault   points   missed   violations   seconds"]
    lines += [
        f"{swept.scenario:<13} {swept.fault:<7} {swept.visited:6}   {len(swept.missed):6}   "
        f"{len(swept.violations):10}   {swept.seconds:7.1f}"
        for swept in sweeps
    ]
    return "\n".join(lines)
