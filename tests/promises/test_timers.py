"""Timers across owners that die: each is fired, once, whoever has its shard then."""

import asyncio

from tests.promises.cluster import Cluster
from tests.promises.journals import Journal
from tests.support.processes import CommandLine, Running
from tests.support.waiting import eventually_async

APP = "tests.promises.journals:app"
IMPATIENT = {"ENTITYQ_LEASE_TIME": "2", "ENTITYQ_SWEEP_INTERVAL": "1"}
WORKERS = 4
ENTITIES = 20
EACH = 20
PATIENCE = 60.0


async def start(entityq: CommandLine, name: str) -> Running:
    worker = entityq.spawn("worker", "-A", APP, "-c", "1", "-n", name, env=IMPATIENT)
    await asyncio.to_thread(worker.wait_for, r"runner\.joined")
    return worker


async def test_each_timer_is_fired_once_although_their_owners_are_killed(
    cluster: Cluster, entityq: CommandLine
) -> None:
    """Timers come due all the time, while one runner after the other is killed."""
    sender = await cluster.client()
    workers = [await start(entityq, f"w{number}") for number in range(WORKERS)]
    calls = [
        sender.at(Journal, f"e{entity}").append.options(delay=2 + number * 0.2).request(f"{number}").call
        for number in range(EACH)
        for entity in range(ENTITIES)
    ]
    outcomes = await sender.client.send_many(calls)

    def left() -> int:
        return cluster.count(b"SELECT count(*) FROM entityq.timer")

    for worker in workers[1:]:
        before = left()

        async def some_fired(before: int = before) -> bool:
            return left() <= before - ENTITIES

        await eventually_async(some_fired, PATIENCE, "timers that are fired")
        assert left() > 0, "nothing is left for the next owner"
        await asyncio.to_thread(worker.kill)

    async def all_fired() -> bool:
        return left() == 0

    await eventually_async(all_fired, PATIENCE, "the last timer")
    await cluster.all_answered(PATIENCE)
    assert len(outcomes) == ENTITIES * EACH
    for entity in range(ENTITIES):
        entries = await sender.at(Journal, f"e{entity}").read()
        assert sorted(entries, key=int) == [str(number) for number in range(EACH)]
