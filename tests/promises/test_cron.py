"""A schedule of every second and a singleton, while the processes that own them are killed."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta

import pytest

from entityq.address import Address
from tests.promises.cluster import Cluster, open_cluster
from tests.promises.ticking import Clock, app
from tests.support.processes import CommandLine, Running
from tests.support.waiting import eventually_async

APP = "tests.promises.ticking:app"
LEASE = {"ENTITYQ_LEASE_TIME": "2", "ENTITYQ_SWEEP_INTERVAL": "1"}
PATIENCE = 60.0


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncGenerator[Cluster]:
    async with open_cluster(app, postgres_url, redis_url, namespace) as cluster:
        yield cluster


class Workers:
    """By the name of their runner."""

    def __init__(self, entityq: CommandLine, cluster: Cluster) -> None:
        self._entityq = entityq
        self._cluster = cluster
        self._numbers = itertools.count(1)
        self._running: dict[str, Running] = {}

    async def start(self) -> None:
        name = f"w{next(self._numbers)}"
        worker = self._entityq.spawn("worker", "-A", APP, "-c", "1", "-n", name, env=LEASE)
        self._running[name] = worker
        await asyncio.to_thread(worker.wait_for, r"runner\.joined")

    async def kill_owner(self, shard_id: int) -> None:
        async def owner() -> str:
            row = self._cluster.sql.execute(
                "SELECT r.name FROM entityq.shard s JOIN entityq.runner r USING (incarnation) WHERE s.shard_id = %s",
                [shard_id],
            ).fetchone()
            name = "" if row is None else str(row[0])
            return name if name in self._running else ""

        name = await eventually_async(owner, PATIENCE, "an owner")
        await asyncio.to_thread(self._running.pop(name).kill)


async def test_each_instant_once_although_its_owners_are_killed(
    cluster: Cluster, entityq: CommandLine
) -> None:
    sender = await cluster.client()
    workers = Workers(entityq, cluster)
    await workers.start()
    await workers.start()
    shard_id = sender.client.facts.shard_id(Address("_cron.default", "tick"))
    assert shard_id is not None
    ticks: list[str] = []

    async def more(count: int) -> None:
        wanted = len(ticks) + count

        async def enough() -> bool:
            ticks[:] = await sender.at(Clock, "main").read()
            return len(ticks) >= wanted

        await eventually_async(enough, PATIENCE, "more instants")

    for _ in range(2):
        await more(2)
        await workers.kill_owner(shard_id)
        await workers.start()
    await more(2)
    instants = [datetime.fromisoformat(tick) for tick in ticks]
    assert instants == [instants[0] + timedelta(seconds=number) for number in range(len(instants))]


async def test_the_singleton_of_a_killed_process_goes_on_in_another(
    cluster: Cluster, entityq: CommandLine
) -> None:
    cluster.sql.execute(
        "CREATE TABLE entityq.led"
        " (number serial PRIMARY KEY, epoch bigint, start bigint, pid integer, alone boolean)"
    )
    sender = await cluster.client()
    workers = Workers(entityq, cluster)
    await workers.start()
    await workers.start()
    shard_id = sender.client.facts.shard_id(Address("_singleton.default", "leader"))
    assert shard_id is not None
    for killed in range(2):

        async def leads(killed: int = killed) -> bool:
            return cluster.count(b"SELECT count(DISTINCT pid) FROM entityq.led") > killed

        await eventually_async(leads, PATIENCE, "a leader")
        await workers.kill_owner(shard_id)
        await workers.start()
    rows = cluster.sql.execute("SELECT epoch, start, pid, alone FROM entityq.led ORDER BY number").fetchall()
    assert len({row[2] for row in rows}) >= 2
    assert [row[:2] for row in rows] == sorted({row[:2] for row in rows})
    assert all(row[3] for row in rows)
