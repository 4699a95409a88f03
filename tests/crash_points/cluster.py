"""The processes of a sweep: a producer, the runners that a scenario needs, and one that is ready to join."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from entityq.postgres.connect import Connection, connect
from tests.crash_points.processes import PATIENCE, Child, Processes, open_processes
from tests.crash_points.script import Step
from tests.support.places import shard_of
from tests.support.servers import SCHEMA, SHARDS
from tests.support.waiting import eventually_async

LEASE_TIME = 1.5

SETTINGS = {
    "ENTITYQ_LEASE_TIME": str(LEASE_TIME),
    "ENTITYQ_TERMINATION_TIME": "2",
    # What nobody published is found soon.
    "ENTITYQ_SWEEP_INTERVAL": "0.3",
}


class Cluster:
    """Whatever a fault took away is replaced."""

    def __init__(self, processes: Processes, sql: Connection) -> None:
        self._processes = processes
        self._sql = sql
        self._producer: Child | None = None
        self._standby: asyncio.Task[Child] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.runners: list[Child] = []

    # ----- runners

    def serving(self) -> list[Child]:
        return [runner for runner in self.runners if runner.useful]

    async def prepare(self, runners: int, *, fresh: bool = False) -> None:
        """So many runners that have all shards between them, a producer, and one runner more that waits.

        `fresh`: they have just joined, and the producer has not connected yet.
        """
        if fresh:
            await self.renew()
        for runner in self.runners:
            if not runner.useful:
                await self._processes.end(runner)
        self.runners = self.serving()
        for runner in self.runners[runners:]:
            self.drain(runner)
            await runner.until(runner.gone.is_set, "its drain ended")
        self.runners = self.serving()
        while len(self.runners) < runners:
            await self._join()
        await self.producer(connected=not fresh)
        self._standby = self._standby or self._start_standby()
        await eventually_async(self._settled, PATIENCE, "an even distribution of the shards")

    async def renew(self) -> None:
        """After a visit that went wrong: nobody who took part stays."""
        for child in (*self.runners, *filter(None, [self._producer])):
            child.kill()
            await child.gone.wait()

    async def _settled(self) -> bool:
        looks = [await self._look(runner) for runner in self.runners]
        fewest = min(look["streams"] for look in looks)
        # Nobody gets more than 1.1 times its part.
        even = fewest >= SHARDS // len(looks) - 1
        return even and sum(len(look["serving"]) for look in looks) == SHARDS

    async def _look(self, runner: Child) -> dict[str, Any]:
        looked = len(runner.of_kind("looked"))
        runner.order(kind="look")
        await runner.until(lambda: len(runner.of_kind("looked")) > looked, "it reported its shards")
        return runner.of_kind("looked")[-1]

    async def entity_of(self, runner: Child, prefix: str) -> str:
        """An entity id that lives on that runner."""
        serving = (await self._look(runner))["serving"]
        return next(name for number in range(1_000) if shard_of(name := f"{prefix}-{number}") in serving)

    def replace_runner(self) -> None:
        """Called when a runner was stopped: if nobody else serves, the one that waits takes over."""
        if not self.serving():
            task = asyncio.create_task(self._join(), name="replace a runner")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _join(self) -> None:
        standby, self._standby = self._standby or self._start_standby(), None
        runner = await standby
        runner.order(kind="join")
        self.runners.append(runner)

    def _start_standby(self) -> asyncio.Task[Child]:
        starting = self._processes.start("runner", "standby", SETTINGS)
        return asyncio.create_task(starting, name="start a runner")

    def drain(self, runner: Child) -> None:
        runner.draining = True
        runner.signal(signal.SIGTERM)

    # ----- producers

    async def producer(self, *, connected: bool = True) -> Child:
        """The one that lives, or a new one."""
        if self._producer is not None and self._producer.gone.is_set():
            await self._processes.end(self._producer)
            self._producer = None
        if self._producer is None:
            self._producer = await self._processes.start("producer", "producer", SETTINGS)
            if connected:
                warm = Step("ask", "warm", f"warm-{self._producer.name}", "write", {"key": "warm"})
                await self.run(self._producer, [warm], PATIENCE)
        return self._producer

    async def run(self, producer: Child, script: Sequence[Step], seconds: float) -> bool:
        """False when the producer was killed in the middle."""
        done = len(producer.of_kind("done")) + 1
        producer.order(script=[asdict(step) for step in script])
        return await producer.until(
            lambda: len(producer.of_kind("done")) == done, "its script was done", seconds, or_gone=True
        )

    # ----- what is stored

    async def describe(self) -> str:
        """For whoever must find out what went wrong."""
        pending = await self.rows(
            b"SELECT p.shard_id, p.seq, o.entity_id, o.message FROM pending p JOIN outbox o USING (request_id)"
        )
        children = [
            f"--- {child.name}, gone: {child.gone.is_set()}\n{child.reports[-3:]}\n{child.log}"
            for child in self._processes.all
        ]
        return "\n".join([f"pending: {pending}", *children])

    async def rows(self, query: bytes, *values: object) -> list[tuple[Any, ...]]:
        return await (await self._sql.execute(query, values)).fetchall()

    async def close(self) -> None:
        if self._standby is not None:
            self._standby.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *filter(None, [self._standby]), return_exceptions=True)


@asynccontextmanager
async def open_cluster(
    postgres_url: str, redis_url: str, namespace: str, directory: Path
) -> AsyncGenerator[Cluster]:
    servers = {"postgres": postgres_url, "redis": redis_url, "namespace": namespace}
    async with (
        await connect(postgres_url, schema=SCHEMA, application_name="tests") as sql,
        open_processes(servers, directory) as processes,
    ):
        cluster = Cluster(processes, sql)
        try:
            yield cluster
        finally:
            await cluster.close()
