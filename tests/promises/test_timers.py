"""Timers across owners that die: each is fired, once, whoever has its shard then."""

import asyncio
import itertools

import pytest

from tests.promises.cluster import Cluster
from tests.promises.journals import Journal
from tests.support.processes import CommandLine, Running
from tests.support.waiting import eventually_async

APP = "tests.promises.journals:app"
LEASE = {"ENTITYQ_LEASE_TIME": "2", "ENTITYQ_SWEEP_INTERVAL": "1"}
KILLS = 3
ENTITIES = 20
EACH = 15
PATIENCE = 60.0


@pytest.fixture
def names() -> "itertools.count[int]":
    return itertools.count(1)


async def start(entityq: CommandLine, names: "itertools.count[int]") -> Running:
    worker = entityq.spawn("worker", "-A", APP, "-c", "1", "-n", f"w{next(names)}", env=LEASE)
    await asyncio.to_thread(worker.wait_for, r"runner\.joined")
    return worker


async def test_each_timer_is_fired_once_although_their_owners_are_killed(
    cluster: Cluster, entityq: CommandLine, names: "itertools.count[int]"
) -> None:
    """Timers come due all the time while one runner after the other is killed."""
    sender = await cluster.client()
    workers = [await start(entityq, names), await start(entityq, names)]
    receipts = [
        await sender.at(Journal, f"e{entity}").append.options(delay=0.5 + number * 0.2).send(f"{number}")
        for number in range(EACH)
        for entity in range(ENTITIES)
    ]
    for _ in range(KILLS):
        before = cluster.count(b"SELECT count(*) FROM entityq.timer")

        async def some_fired(before: int = before) -> bool:
            return cluster.count(b"SELECT count(*) FROM entityq.timer") < before - ENTITIES // 2

        await eventually_async(some_fired, PATIENCE, "timers that are fired")
        await asyncio.to_thread(workers.pop(0).kill)
        workers.append(await start(entityq, names))
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*receipts)
    for entity in range(ENTITIES):
        entries = await sender.at(Journal, f"e{entity}").read()
        assert sorted(entries, key=int) == [str(number) for number in range(EACH)]
    assert cluster.count(b"SELECT count(*) FROM entityq.timer") == 0
    assert cluster.pending == 0
