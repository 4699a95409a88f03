"""Handlers that block the event loop, in real runners."""

import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest

from entityq import EntityDefect
from entityq.runner.attempts import MAX_ATTEMPTS
from tests.cli.workers import joined, start_worker
from tests.promises.cluster import Cluster, Sending, open_cluster
from tests.runner.blocked_shop import Shop, app
from tests.support.places import neighbours, shard_of
from tests.support.processes import CommandLine, Running
from tests.support.waiting import eventually_async

MODULE = "tests.runner.blocked_shop"
SHORT_LIMIT = 5.0


@dataclass
class Mall:
    """Real runners of the shop, and a client of it in the test's process."""

    entityq: CommandLine
    cluster: Cluster
    client: Sending
    runners: dict[int, Running] = field(default_factory=dict[int, Running])

    async def start(self, name: str) -> Running:
        """A runner with the short limit, and a part of the shards."""
        command = [sys.executable, "-m", MODULE, name, str(SHORT_LIMIT)]
        running = self.entityq.spawn_program(command)
        incarnation = int((await until_logged(running, r"runner\.joined incarnation=(\d+)"))[1])
        self.runners[incarnation] = running

        async def owns_some() -> bool:
            return any(self.owner(str(number)) == incarnation for number in range(100))

        await eventually_async(owns_some, 40, f"{name} has shards")
        return running

    def shop(self, entity_id: str) -> Shop:
        return self.client.at(Shop, entity_id)

    def owner(self, entity_id: str) -> int:
        """The incarnation that has, or had, its shard."""
        query = "SELECT coalesce(incarnation, 0) FROM entityq.shard WHERE number = %s"
        row = self.cluster.sql.execute(query, [shard_of(entity_id)]).fetchone()
        assert row is not None
        return int(str(row[0]))

    def one_elsewhere(self, entity_id: str) -> str:
        """An entity of another live runner."""
        owner = self.owner(entity_id)
        others = self.runners.keys() - {owner}
        return next(str(number) for number in range(1_000) if self.owner(str(number)) in others)


@pytest.fixture
async def mall(
    entityq: CommandLine, postgres_url: str, redis_url: str, namespace: str
) -> AsyncIterator[Mall]:
    async with open_cluster(app, postgres_url, redis_url, namespace, ask_timeout=60.0) as cluster:
        yield Mall(entityq, cluster, await cluster.client())


async def until_logged(running: Running, pattern: str) -> "re.Match[str]":
    return await asyncio.to_thread(running.wait_for, pattern, 40.0)


async def test_the_line_that_blocks_is_shown_and_the_runner_goes_on(mall: Mall, tmp_path: Path) -> None:
    worker = await asyncio.to_thread(start_worker, mall.entityq, app=f"{MODULE}:app", runners=2)
    gate = tmp_path / "gate"
    receipt = await mall.shop("culprit").block.send(str(gate))
    who = rf"entity=Shop/culprit request={receipt.request_id} message=block"
    await until_logged(worker, rf"loop\.blocked seconds=2\.\d {who}")
    await until_logged(worker, r'File ".*/blocked_shop\.py", line \d+, in block\n +wait_for_file\(until\)\n')
    gate.touch()
    assert await receipt == 1
    await until_logged(worker, r"loop\.unblocked seconds=\d")
    assert await mall.shop("culprit").visit() == 2
    assert joined(worker) == 2
    assert "evicted" not in worker.stderr


async def test_four_processes_end_and_then_the_caller_is_told(mall: Mall) -> None:
    await mall.start("r0")
    await mall.start("r1")
    receipt = await mall.shop("culprit").block.send("/never")
    for attempts in range(1, MAX_ATTEMPTS + 1):

        async def blocked() -> int:
            owner = mall.owner("culprit")
            running = mall.runners.get(owner)
            return owner if running is not None and "loop.blocked seconds=" in running.stderr else 0

        owner = await eventually_async(blocked, 40, "a blocked runner")
        running = mall.runners[owner]
        other = mall.shop(mall.one_elsewhere("culprit"))
        for _ in range(10):
            assert await other.visit()
        assert not running.has_ended
        # Whoever takes the shards over is not alone, either.
        await mall.start(f"r{attempts + 1}")
        finished = await asyncio.to_thread(mall.runners.pop(owner).wait)
        assert finished.code == 70, finished
        assert f"attempt.recorded request={receipt.request_id} attempts={attempts}" in finished.stderr
    with pytest.raises(EntityDefect, match="ended the processes of 4 runners"):
        await receipt
    assert await mall.shop("culprit").visit() == 1
    assert mall.cluster.pending == 0


async def test_a_handler_that_kills_its_process_is_given_up_and_its_neighbours_are_answered(
    mall: Mall,
) -> None:
    await mall.start("r0")
    await mall.start("r1")
    # Of the culprit's own shard, too: they run, and are counted, beside it.
    names = dict.fromkeys([*islice(neighbours("culprit"), 3), *map(str, range(10))])
    others = [mall.shop(name) for name in names]
    receipt = await mall.shop("culprit").die.send()
    visits = [await other.visit.send() for other in others for _ in range(3)]
    for attempts in range(1, MAX_ATTEMPTS + 1):

        async def dead() -> int:
            return next((number for number, each in mall.runners.items() if each.has_ended), 0)

        ended = await eventually_async(dead, 40, f"end {attempts} of a runner")
        assert (await asyncio.to_thread(mall.runners.pop(ended).wait)).code == -signal.SIGKILL
        await mall.start(f"r{attempts + 1}")
    with pytest.raises(EntityDefect, match="Shop/culprit ended the processes of 4 runners"):
        await receipt
    assert [await visit for visit in visits] == [1, 2, 3] * len(others)
    assert await mall.shop("culprit").visit() == 1
    assert not any(running.has_ended for running in mall.runners.values())
    rows = mall.cluster.sql.execute("SELECT entity_id, message, attempts FROM entityq.dead_letter").fetchall()
    assert rows == [("culprit", "die", 4)]


async def test_a_volatile_message_ends_one_process_and_no_more(mall: Mall) -> None:
    await mall.start("r0")
    await mall.start("r1")
    looking = asyncio.create_task(mall.shop("culprit").look("/never"))

    async def ended() -> list[Running]:
        return [running for running in mall.runners.values() if running.has_ended]

    (running,) = await eventually_async(ended, 40, "an end")
    finished = await asyncio.to_thread(running.wait)
    assert finished.code == 70, finished
    with pytest.raises(EntityDefect, match="a volatile message is not run again"):
        await looking
    # What a takeover finds in the outbox goes before what it finds in the stream alone.
    assert [await mall.shop("culprit").visit() for _ in range(2)] == [1, 2]
    (survivor,) = (each for each in mall.runners.values() if each is not running)
    assert "loop.blocked" not in survivor.stderr


async def test_a_frozen_process_does_not_end_itself_when_it_wakes(mall: Mall, tmp_path: Path) -> None:
    running = await mall.start("r0")
    gate = tmp_path / "gate"
    receipt = await mall.shop("culprit").block.send(str(gate))
    await until_logged(running, r"loop\.blocked seconds=1\.")
    running.signal(signal.SIGSTOP)
    woken = time.monotonic() + SHORT_LIMIT + 2

    async def long_enough() -> bool:
        return time.monotonic() > woken

    await eventually_async(long_enough, 30)
    running.signal(signal.SIGCONT)
    # It has been looked at since.
    await until_logged(running, r"loop\.blocked seconds=[2-4]\.")
    gate.touch()
    assert await receipt == 1
    await until_logged(running, r"loop\.unblocked seconds=")
    assert "blocked_too_long" not in running.stderr
