"""Turns that were not applied: what they leave behind, and what others see of it."""

import asyncio
from typing import ClassVar

import pytest

from entityq import message
from entityq.address import Address
from entityq.postgres.connect import connect
from entityq.primary_key import key_digest
from tests.support.live import LiveCluster, soon
from tests.support.probe import Probe
from tests.support.servers import SCHEMA
from tests.support.stage import Actor


async def test_a_turn_dropped_in_the_middle_of_a_pass_keeps_its_place(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """What the next pages bring of its entity waits behind it."""
    app = cluster.app(prefetch=10)  # the pages have ten rows
    probe = cluster.actor(app, Probe).at("a")
    first = await cluster.start(app)
    assert await probe.note("first") == 1
    await cluster.stop(first)
    texts = [str(number) for number in range(40)]
    receipts = [await probe.note.send(text, gate="g" if text == "0" else "") for text in texts]
    cluster.stage.close("g")
    second = await cluster.start(app, "r2", shards=0)
    await cluster.stage.saw("note a 0")
    assert not second.serves(16)
    await cluster.rows("UPDATE entity SET version = version + 1")
    cluster.stage.open("g")
    assert [await receipt for receipt in receipts] == list(range(2, 42))
    assert "turn.dropped" in caplog.text
    assert await probe.peek() == ["first", *texts]


class Sender(Actor):
    probe: ClassVar[Probe]

    @message
    async def send(self) -> None:
        self._stage.tell("send")
        await self.probe.add.send(1, "k")

    @message
    async def step(self, number: int) -> int:
        return number


async def test_a_turn_whose_key_is_locked_lets_others_commit(cluster: LiveCluster, postgres_url: str) -> None:
    """Somebody's open transaction has inserted a request with the key that the turn sends."""
    app = cluster.app()
    sender = cluster.actor(app, Sender)
    sender.probe = cluster.actor(app, Probe).at("b")
    await cluster.start(app)
    digest = key_digest(cluster.namespace, Address("Probe", "b"), "add", "k")
    async with await connect(postgres_url, schema=SCHEMA, application_name="tests") as other:
        async with other.transaction(force_rollback=True):
            await other.execute(
                b"INSERT INTO outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message,"
                b" key_digest, payload_hash, envelope)"
                b" VALUES (1, 1, 1000000, 1, 'Probe', 'b', 'add', %s, '', '')",
                [digest],
            )
            receipt = await sender.at("a").send.send()
            await cluster.stage.saw("send")
            for number in range(60):
                assert await sender.at(str(number)).step(number) == number
            # Tried at once again and again, it would have run about as often as the others.
            assert cluster.stage.journal.count("send") < 20
        await receipt
    await cluster.stage.saw("add b k")
    assert cluster.stage.lines("add b ") == ["k"]


async def test_a_commit_that_another_writer_undoes_is_no_defect_of_its_turn(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The turn waits and runs again; here until the type that it sends to has its row back."""
    app = cluster.app()
    sender = cluster.actor(app, Sender)
    sender.probe = cluster.actor(app, Probe).at("b")
    await cluster.start(app)
    assert await sender.at("a").step(1) == 1  # the app's client is open: it will not register the type again
    (row,) = await cluster.rows(
        "DELETE FROM entity_type WHERE type = 'Probe' RETURNING namespace, type, group_id"
    )
    receipt = await sender.at("a").send.send()

    async def dropped() -> bool:
        return "turn.dropped" in caplog.text

    await soon(dropped, "the first try")
    await cluster.rows("INSERT INTO entity_type (namespace, type, group_id) VALUES (%s, %s, %s)", *row)
    await receipt
    await cluster.stage.saw("add b k")


class Stubborn(Actor):
    turns: int = 0

    @message
    async def endure(self) -> int:
        self.turns += 1
        gate = asyncio.create_task(self._stage.enter("endure", "g"))
        while not gate.done():
            try:
                await asyncio.shield(gate)
            except asyncio.CancelledError:
                self._stage.tell("swallowed")
        return self.turns


async def test_a_handler_that_swallows_its_cancellation_does_not_keep_the_runner_from_ending(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app(termination_time=0.2)
    stubborn = cluster.actor(app, Stubborn).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await stubborn.endure.send()
    await cluster.stage.saw("endure")
    async with asyncio.timeout(10):
        await cluster.stop(member)
    assert "swallowed" in cluster.stage.journal
    assert "turn.abandoned" in caplog.text
    cluster.stage.open("g")
    # The abandoned turn has ended now, and has not committed.
    assert await cluster.pending() == 1
    await cluster.start(app, "r2")
    assert await receipt == 1


async def test_a_handler_that_swallows_its_cancellation_does_not_keep_the_runner_from_joining_again(
    cluster: LiveCluster,
) -> None:
    app = cluster.app()
    stubborn = cluster.actor(app, Stubborn).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await stubborn.endure.send()
    await cluster.stage.saw("endure")
    await cluster.rows("SELECT pg_terminate_backend(pid) FROM runner")
    await cluster.stage.until(lambda: cluster.stage.journal.count("endure") == 2, "a turn of the next life")
    assert not member.task.done()
    cluster.stage.open("g")
    assert await receipt == 1
    assert await stubborn.endure() == 2
