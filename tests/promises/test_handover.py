"""Shards on the move: runners that come and go under load, with every move counted."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from entityq.runner.assignment import Candidate, assign
from entityq.runner.lease_keeper import LeaseKeeper
from tests.promises.cluster import Cluster, Running, Sending
from tests.promises.journals import GATES, RUNS, Journal
from tests.support.servers import SHARDS
from tests.support.waiting import eventually_async

PATIENCE = 20.0

OWNERS = b"SELECT shard_id, coalesce(incarnation, 0) FROM entityq.shard"


@pytest.fixture(autouse=True)
def _patient(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in moves must not depend on time: slow is not lost, and polls are the rare fallback."""
    monkeypatch.setitem(vars(LeaseKeeper)["__init__"].__kwdefaults__, "poll", 3.0)
    cluster.app_settings(lease_time=15.0, pool_size=1)


@asynccontextmanager
async def load(sender: Sending, entities: Sequence[str]) -> AsyncGenerator[dict[str, int]]:
    """Each entity is asked again as soon as it has answered. Every reply is the place of its request."""
    counts = dict.fromkeys(entities, 0)
    stop = asyncio.Event()

    async def ask(name: str) -> None:
        while not stop.is_set():
            text = str(counts[name])
            counts[name] += 1
            assert await sender.at(Journal, name).append.options(timeout=PATIENCE)(text) == counts[name]

    tasks = [asyncio.create_task(ask(name), name=f"load {name}") for name in entities]
    try:
        yield counts
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def assigned(cluster: Cluster, runners: Sequence[Running]) -> dict[int, int]:
    """By shard id, the incarnation that should have it."""
    incarnations = pairs(cluster, b"SELECT name, incarnation FROM entityq.runner")
    places = {
        str(name): str(place)
        for name, place in cluster.sql.execute(b"SELECT name, place FROM entityq.runner")
    }
    candidates = [
        Candidate(incarnations[running.name], weight_of(running), place=places[running.name])
        for running in runners
    ]
    return assign(sorted(pairs(cluster, OWNERS)), candidates)


def pairs(cluster: Cluster, query: bytes) -> dict[Any, int]:
    return {key: int(str(value)) for key, value in cluster.sql.execute(query)}


async def settled(cluster: Cluster, runners: Sequence[Running]) -> None:
    """Every shard is where it is assigned to, and served."""

    async def so() -> bool:
        return pairs(cluster, OWNERS) == assigned(cluster, runners)

    await cluster.serving(*runners, shards=SHARDS)
    await eventually_async(so, PATIENCE, "the shards are where they belong")
    await cluster.serving(*runners, shards=SHARDS)


def weight_of(running: Running) -> float:
    return 2.0 if running.name.startswith("heavy") else 1.0


def moves(cluster: Cluster) -> int:
    return cluster.count(b"SELECT sum(epoch) FROM entityq.shard")


def differing(before: dict[int, int], after: dict[int, int]) -> int:
    return sum(before[shard] != after[shard] for shard in before)


async def test_one_runner_becomes_eight_and_one_again(cluster: Cluster) -> None:
    """Nothing is lost, and no shard moves that need not."""
    sender = await cluster.client()
    entities = [f"scale-{number}" for number in range(40)]
    runners = [await cluster.start("runner 0")]
    await settled(cluster, runners)
    theoretical = moves(cluster)
    async with load(sender, entities) as counts:
        for number in range(1, 8):
            before = assigned(cluster, runners)
            runners.append(await cluster.start(f"runner {number}"))
            await settled(cluster, runners)
            theoretical += differing(before, assigned(cluster, runners))
            assert moves(cluster) == theoretical
        for _ in range(7):
            before = assigned(cluster, runners)
            await runners.pop(0).stop()
            await settled(cluster, runners)
            theoretical += differing(before, assigned(cluster, runners))
            assert moves(cluster) == theoretical
    for name in entities:
        assert await sender.at(Journal, name).read() == [str(number) for number in range(counts[name])]


async def test_a_rolling_restart_moves_the_shards_of_the_runner_that_is_replaced_and_no_others(
    cluster: Cluster,
) -> None:
    sender = await cluster.client()
    runners = [await cluster.start(f"runner {place}", place=f"place {place}") for place in range(3)]
    await settled(cluster, runners)
    entities = [f"roll-{number}" for number in range(20)]
    async with load(sender, entities) as counts:
        for place in range(3):
            old = runners[place]
            theirs, before = len(old.life.shards), moves(cluster)
            runners[place] = await cluster.start(f"runner {place}", place=f"place {place}")
            await old.stop()
            await settled(cluster, runners)
            assert moves(cluster) == before + theirs
            assert len(runners[place].life.shards) == theirs
    for name in entities:
        assert await sender.at(Journal, name).read() == [str(number) for number in range(counts[name])]


async def test_twice_the_weight_is_about_twice_the_shards(cluster: Cluster) -> None:
    runners = [await cluster.start("heavy", weight=2.0), await cluster.start("light", weight=1.0)]
    await settled(cluster, runners)
    heavy, light = (len(running.life.shards) for running in runners)
    assert heavy + light == SHARDS
    assert 1.5 * light <= heavy <= 3 * light


async def test_a_turn_that_ends_within_the_termination_time_is_committed_by_who_leaves(
    cluster: Cluster,
) -> None:
    """LCK-03: its shard is released after it, once; the others are not held up by it."""
    sender = await cluster.client()
    first = await cluster.start("first", termination_time=PATIENCE)
    await settled(cluster, [first])
    receipt = await sender.at(Journal, "leaves").held.send("first")
    await GATES["leaves"].wait_for_handler()
    second = await cluster.start("second")
    await cluster.serving(first, second, shards=SHARDS)
    stopping = asyncio.create_task(first.stop())
    await cluster.serving(second, shards=SHARDS - 1)
    # What comes for the entity meanwhile is accepted, and waits for the next owner.
    behind = await sender.at(Journal, "leaves").append.send("second")
    assert not stopping.done()
    GATES["leaves"].opened.set()
    assert await receipt == 1
    assert await behind == 2
    await stopping
    assert RUNS["leaves", "first"] == 1
    rows = cluster.sql.execute("SELECT version FROM entityq.entity WHERE entity_id = 'leaves'")
    assert rows.fetchall() == [(2,)]


async def test_a_turn_that_outlives_the_termination_time_is_abandoned(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """LCK-03: the next owner runs it again; the first run ends later, and changes nothing."""
    sender = await cluster.client()
    first = await cluster.start("first", termination_time=0.5)
    await settled(cluster, [first])
    receipt = await sender.at(Journal, "outlives").stubborn.send("x")
    await GATES["outlives 1"].wait_for_handler()
    second = await cluster.start("second")
    stopping = asyncio.create_task(first.stop())
    await GATES["outlives 2"].wait_for_handler()
    GATES["outlives 2"].opened.set()
    assert await receipt == 1
    assert "turn.abandoned" in caplog.text
    GATES["outlives 1"].opened.set()
    await stopping
    await settled(cluster, [second])
    assert await sender.at(Journal, "outlives").read() == ["x"]
