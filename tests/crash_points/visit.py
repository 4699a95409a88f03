"""One visit: a scenario, with a fault at one point of it, and what must be true afterwards."""

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.crash_points.checks import Stored, Told, told_by, violations
from tests.crash_points.cluster import LEASE_TIME, Cluster
from tests.crash_points.gate import Action, Armed
from tests.crash_points.point import Point
from tests.crash_points.processes import PATIENCE, Child
from tests.crash_points.scenario import Scenario, Trigger
from tests.crash_points.script import Step, left, send_path
from tests.support.waiting import eventually_async

Fault = Literal["kill", "drop", "pause", "slow"]
FAULTS: Sequence[Fault] = ("kill", "drop", "pause", "slow")

# Seconds: of a pause, long enough to be evicted; of a slow step, above Redis's deadline and below the others.
PAUSE = 2.5 * LEASE_TIME
SLOW = 0.3
# What happens without any request happens within so many seconds.
BACKGROUND = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """`occurrence`: 1 is the first time that the scenario comes to the point."""

    point: Point
    occurrence: int
    fault: Fault


@dataclass(slots=True)
class Outcome:
    """`trace`: the points in order, of the scenario's roles."""

    reached: bool = False
    trace: list[Point] = field(default_factory=list[Point])
    violations: list[str] = field(default_factory=list[str])


class Visit:
    """Made for one visit; `run` does it."""

    def __init__(self, cluster: Cluster, scenario: Scenario, name: str, target: Target | None) -> None:
        """Without a target the scenario is only recorded."""
        self._cluster = cluster
        self._scenario = scenario
        self._name = name
        self._target = target
        self._armed: Armed | None = None
        self._roles: dict[str, Child] = {}
        self._later: list[asyncio.Task[None]] = []

    async def run(self) -> Outcome:
        cluster, scenario = self._cluster, self._scenario
        await cluster.prepare(scenario.runners, fresh=scenario.fresh)
        producer = await cluster.producer()
        self._roles = {"producer": producer, "runner": cluster.runners[0]}
        if scenario.runners > 1:
            self._roles["next runner"] = cluster.runners[1]
        entity = await cluster.entity_of(cluster.runners[0], self._name)
        for role, child in self._roles.items():
            child.gate.role = role
        self._begin()
        script = send_path(entity)
        tellings = await self._play(producer, script)
        await self._linger()
        outcome = Outcome(trace=self._end())
        if self._armed is not None:
            outcome.reached = self._armed.reached
        await asyncio.gather(*self._later)
        stored = await self._stored(entity)
        outcome.violations = violations(entity, script, tellings, stored)
        outcome.violations += [f"refused: {text}" for told in tellings for text in told.refused]
        return outcome

    # ----- the points

    def _begin(self) -> None:
        trigger = self._scenario.trigger
        if trigger is None:
            self._watch()
        else:
            runner = self._roles["runner"]
            runner.gate.watch()
            runner.gate.arm(Armed(trigger.point, 1, self._triggered(trigger, runner)))

    def _watch(self) -> None:
        for role in self._scenario.roles:
            self._roles[role].gate.watch()
        target = self._target
        if target is not None:
            child = self._roles[target.point.role]
            self._armed = Armed(target.point, target.occurrence, self._fault(target, child))
            child.gate.arm(self._armed)

    def _end(self) -> list[Point]:
        traces = {role: child.gate.unwatch() for role, child in self._roles.items()}
        return [point for role in self._scenario.roles for point in traces[role]]

    def _triggered(self, trigger: Trigger, runner: Child) -> Action:
        async def act() -> bool:
            if trigger.action == "kill":
                runner.kill()
                await runner.gone.wait()
            elif trigger.action == "drain":
                self._cluster.drain(runner)
            self._watch()
            if trigger.action == "pause":
                await self._pause(runner)
            return trigger.action in {"pause", "drain"}

        return act

    def _fault(self, target: Target, child: Child) -> Action:
        async def kill() -> bool:
            child.kill()
            await child.gone.wait()
            self._replace(child)
            return False

        async def drop() -> bool:
            return False

        async def pause() -> bool:
            waking = self._pause(child)
            self._replace(child)
            if target.point.phase == "before":
                await waking
            return True

        async def slow() -> bool:
            await asyncio.sleep(SLOW)
            return True

        return {"kill": kill, "drop": drop, "pause": pause, "slow": slow}[target.fault]

    def _replace(self, child: Child) -> None:
        if child is not self._roles["producer"]:
            self._cluster.replace_runner()

    def _pause(self, child: Child) -> asyncio.Task[None]:
        """Returns when it goes on."""
        child.signal(signal.SIGSTOP)
        child.paused = True
        waking = asyncio.create_task(self._wake(child), name=f"wake {child.name}")
        self._later.append(waking)
        return waking

    async def _wake(self, child: Child) -> None:
        await asyncio.sleep(PAUSE)
        child.signal(signal.SIGCONT)
        child.paused = False

    # ----- the script

    async def _play(self, producer: Child, script: Sequence[Step]) -> list[Told]:
        """What was told, first to the producer, then to the successor of one that was killed."""
        tellings: list[Told] = []
        steps = script
        while True:
            told_before = len(producer.reports)
            done = await self._cluster.run(producer, steps, PATIENCE)
            tellings.append(told_by(producer.reports[told_before:]))
            if done:
                return tellings
            assert self._target is not None, f"the producer ended by itself\n{producer.log}"
            ours = self._target.fault == "kill" and self._target.point.role == "producer"
            assert ours, f"the producer ended by itself\n{producer.log}"
            started = {label for told in tellings for label in told.started}
            steps = left(script, started)
            producer = await self._cluster.producer()

    async def _linger(self) -> None:
        """Until what happens by itself has happened, too."""
        runner = self._roles["runner"]
        if runner.draining:
            await runner.until(runner.gone.is_set, "its drain ended")

        async def reached() -> bool:
            return self._armed is not None and self._armed.reached

        try:
            await eventually_async(reached, BACKGROUND)
        except AssertionError:
            return

    # ----- afterwards

    async def _stored(self, entity: str) -> Stored:
        cluster = self._cluster
        await eventually_async(self._nothing_pending, PATIENCE, "an empty pending table")
        names = [entity, f"{entity}-target", f"{entity}-asked"]
        closing = [Step("ask", name, name, "write", {"key": "end"}) for name in names]
        # More than once when the producer was killed after its last step, in what it does behind it.
        told = (await self._play(await cluster.producer(), closing))[-1]
        assert not told.failed, told.failed
        versions = await cluster.rows(
            b"SELECT entity_id, version FROM entity WHERE entity_id = ANY (%s)", names
        )
        requests = await cluster.rows(
            b"SELECT entity_id, epoch FROM outbox WHERE entity_id = ANY (%s) ORDER BY seq", names
        )
        return Stored(
            entries={name: told.answered[name][0] for name in names},
            versions=dict(versions),
            epochs={name: [epoch for other, epoch in requests if other == name] for name in names},
        )

    async def _nothing_pending(self) -> bool:
        ((pending,),) = await self._cluster.rows(b"SELECT count(*) FROM pending")
        return int(pending) == 0
