"""Delivery and persistence: DEL of the checklist (see README.md here)."""

import asyncio
import logging
from contextvars import ContextVar
from decimal import Decimal
from typing import ClassVar

import pytest

from entityq import (
    Accepted,
    EntityDefect,
    EntityQError,
    Failure,
    MailboxFull,
    MalformedMessage,
    RunnerNotRegistered,
    RunnerUnavailable,
    SendTimeout,
    message,
)
from entityq.address import Address
from entityq.postgres.backlog import Backlog, Row
from tests.support.live import LiveCluster, live_cluster, soon
from tests.support.places import neighbour
from tests.support.probe import Probe
from tests.support.servers import PrivateServers
from tests.support.stage import Actor

WHERE: ContextVar[str] = ContextVar("WHERE", default="nowhere")


async def test_del_01_a_volatile_request_is_answered_and_not_stored(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    await cluster.start(app)
    assert await probe.at("a").peek() == []
    assert await cluster.requests() == 0


class Ambient(Actor):
    @message
    async def where(self, here: str, gate: str = "") -> str:
        await self._stage.enter(f"where {here}", gate)
        before = WHERE.get()
        WHERE.set(here)
        return before


async def test_del_02_a_handler_sees_the_context_of_its_runner_only(cluster: LiveCluster) -> None:
    """Neither that of a caller nor what the entity's turn before it has set."""
    app = cluster.app()
    ambient = cluster.actor(app, Ambient).at("a")
    WHERE.set("runner")
    await cluster.start(app)
    WHERE.set("caller")
    assert await ambient.where("first") == "runner"
    cluster.stage.close("g")
    second = await ambient.where.send("second", gate="g")
    third = await ambient.where.send("third")
    await cluster.stage.saw("where second")
    cluster.stage.open("g")
    # The third starts as soon as the second, which it waited for, has ended.
    assert [await second, await third] == ["runner", "runner"]


async def test_del_03_a_request_is_stored_before_its_handler_runs(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    await cluster.start(app)
    cluster.stage.close("g")
    receipt = await probe.at("a").note.send("x", gate="g")
    await cluster.stage.saw("note a x")
    assert (await cluster.requests(), await cluster.pending(), await cluster.replies()) == (1, 1, 0)
    cluster.stage.open("g")
    assert await receipt == 1
    assert (await cluster.requests(), await cluster.pending(), await cluster.replies()) == (1, 0, 1)


class Unfit(Failure):
    value: Decimal


class Misfits(Actor):
    total: int = 0

    @message
    async def fail_badly(self) -> int:
        self.total += 1
        failure = Unfit(value=Decimal(1))
        vars(failure)["value"] = object()
        raise failure

    @message
    async def return_badly(self) -> int:
        self.total += 1
        return "no number"  # type: ignore[return-value]  # what this test is about

    @message(persisted=False)
    async def read(self) -> int:
        return self.total


async def test_del_04_a_result_that_cannot_be_encoded_is_a_defect_at_once(cluster: LiveCluster) -> None:
    app = cluster.app()
    misfits = cluster.actor(app, Misfits).at("a")
    await cluster.start(app)
    with pytest.raises(EntityDefect):
        await misfits.fail_badly.options(timeout=2).ask()
    with pytest.raises(EntityDefect):
        await misfits.return_badly.options(timeout=2).ask()
    assert await misfits.read() == 0
    assert (await cluster.replies(), await cluster.pending()) == (2, 0)


class Stubborn(Actor):
    @message
    async def persisted(self, gate: str = "") -> str:
        return await self._wait("persisted", gate)

    @message(persisted=False)
    async def volatile(self, gate: str = "") -> str:
        return await self._wait("volatile", gate)

    async def _wait(self, name: str, gate: str) -> str:
        try:
            await self._stage.enter(f"{name} {self.id}", gate)
        except asyncio.CancelledError:
            self._stage.tell(f"interrupted {name} {self.id}")
            raise
        return name


async def test_del_06_a_shutdown_leaves_what_it_interrupts_to_the_next_owner(cluster: LiveCluster) -> None:
    app = cluster.app(termination_time=0.2)
    stubborn = cluster.actor(app, Stubborn)
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await stubborn.at("a").persisted.send(gate="g")
    await cluster.stage.saw("persisted a")
    await cluster.stop(member)
    await cluster.stage.saw("interrupted persisted a")
    assert (await cluster.requests(), await cluster.replies(), await cluster.pending()) == (1, 0, 1)
    cluster.stage.open("g")
    await cluster.start(app, "r2")
    assert await receipt == "persisted"
    assert cluster.stage.journal.count("persisted a") == 2


async def test_del_07_a_volatile_request_is_interrupted_too_and_taken_over(cluster: LiveCluster) -> None:
    app = cluster.app(termination_time=0.2)
    stubborn = cluster.actor(app, Stubborn)
    member = await cluster.start(app)
    cluster.stage.close("g")
    asking = asyncio.create_task(stubborn.at("a").volatile(gate="g"))
    await cluster.stage.saw("volatile a")
    await cluster.stop(member)
    await cluster.stage.saw("interrupted volatile a")
    cluster.stage.open("g")
    await cluster.start(app, "r2")
    assert await asking == "volatile"
    assert cluster.stage.journal.count("volatile a") == 2


class Nobody(Actor):
    """Lives in a shard group that no runner of these tests serves."""

    @message
    async def persisted(self) -> int:
        return 1

    @message(persisted=False)
    async def volatile(self) -> int:
        return 1


class Leaving(Actor):
    nobody: ClassVar[Nobody]
    _how: str = ""

    @message
    async def stay(self, how: str) -> None:
        self._how = how

    async def on_deactivate(self) -> None:
        try:
            await self._do()
        except EntityQError as error:
            self._stage.tell(type(error).__name__)
        else:
            self._stage.tell("sent")

    async def _do(self) -> None:
        match self._how:
            case "send persisted":
                await self.nobody.persisted.send()
            case "send volatile":
                await self.nobody.volatile.send()
            case "ask persisted":
                await self.nobody.persisted.options(timeout=0.3).ask()
            case _:
                await self.nobody.volatile.options(timeout=0.3).ask()


async def shut_down_while_leaving(cluster: LiveCluster, how: str) -> None:
    app = cluster.app(termination_time=3.0)
    leaving = cluster.actor(app, Leaving)
    leaving.nobody = cluster.actor(app, Nobody, shard_group="elsewhere").at("b")
    member = await cluster.start(app, groups=["default"])
    await leaving.at("a").stay(how)
    async with asyncio.timeout(4):
        await cluster.stop(member)


@pytest.mark.parametrize("kind", ["persisted", "volatile"])
async def test_del_08_a_shutdown_waits_for_sends_of_on_deactivate(cluster: LiveCluster, kind: str) -> None:
    await shut_down_while_leaving(cluster, f"send {kind}")
    assert cluster.stage.journal == ["sent"]
    assert await cluster.pending() == (1 if kind == "persisted" else 0)


@pytest.mark.parametrize("kind", ["persisted", "volatile"])
async def test_del_09_a_shutdown_does_not_hang_on_asks_of_on_deactivate(
    cluster: LiveCluster, kind: str
) -> None:
    await shut_down_while_leaving(cluster, f"ask {kind}")
    assert cluster.stage.journal == [RunnerUnavailable.__name__]
    assert await cluster.pending() == (1 if kind == "persisted" else 0)


async def test_del_11_a_stored_request_that_cannot_be_decoded_is_answered(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    broken = await probe.at("a").note.send("x")
    sound = await probe.at("a").note.send("y")
    await cluster.flush_redis()
    await cluster.rows("UPDATE outbox SET envelope = %s WHERE request_id = %s", b"\xc1", broken.request_id)
    await cluster.start(app)
    with pytest.raises(MalformedMessage):
        await broken
    assert await sound == 1
    assert (await cluster.requests(), await cluster.pending()) == (2, 0)
    assert cluster.stage.journal == ["note a y"]


async def test_del_12_a_full_mailbox_refuses_volatile_requests_at_once(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe, mailbox_capacity=10).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    held = [asyncio.create_task(probe.hold(str(number), "g")) for number in range(10)]
    await cluster.stage.saw("hold a 0")
    started = asyncio.get_running_loop().time()
    with pytest.raises(MailboxFull):
        await probe.hold.options(timeout=5).ask("one too many", "g")
    assert asyncio.get_running_loop().time() - started < 5
    cluster.stage.open("g")
    assert await asyncio.gather(*held) == [str(number) for number in range(10)]
    assert await probe.hold("again", "g") == "again"


async def test_del_13_requests_beyond_the_capacity_wait_in_the_outbox(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order; afterwards the entity is served from the stream again, without reads of the outbox."""
    reads: list[Address] = []
    read = Backlog.read_pending_of_entity

    async def counted(self: Backlog, shard_id: int, address: Address, page: int) -> list[Row]:
        reads.append(address)
        return await read(self, shard_id, address, page)

    monkeypatch.setattr(Backlog, "read_pending_of_entity", counted)
    app = cluster.app()
    probe = cluster.actor(app, Probe, mailbox_capacity=10)
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await probe.at("a").note.send("0", gate="g")]
    receipts += [await probe.at("a").note.send(str(number)) for number in range(1, 25)]
    # A neighbour in the same shard goes on meanwhile.
    assert await probe.at(neighbour("a")).note("here") == 1

    async def overflowed() -> bool:
        return len(member.life.deferrals) == 1

    await soon(overflowed, "the overflow")
    (activation,) = [found for found in member.life.residents if found.address.id == "a"]
    assert activation.queued == 10
    assert cluster.stage.lines("note a ") == ["0"]
    cluster.stage.open("g")
    assert [await receipt for receipt in receipts] == list(range(1, 26))
    assert cluster.stage.lines("note a ") == [str(number) for number in range(25)]
    assert await cluster.pending() == 0
    assert reads
    # The last read found nothing more, or is about to.
    await soon(lambda: as_async(not member.life.deferrals), "the end of the overflow")
    reads.clear()
    assert [await probe.at("a").note("more") for _ in range(5)] == list(range(26, 31))
    assert not reads


async def test_del_17_a_request_of_a_crashed_runner_runs_again_and_its_key_joins(
    cluster: LiveCluster,
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await probe.add.send(5, "k", gate="g")
    await cluster.stage.saw("add a k")
    await cluster.crash(member)
    assert (await cluster.replies(), await cluster.pending()) == (0, 1)
    cluster.stage.open("g")
    await cluster.start(app, "r2")
    assert await receipt == 5
    assert await probe.add(5, "k", gate="g") == 5
    assert cluster.stage.lines("add a ") == ["k", "k"]
    assert (await cluster.requests(), await cluster.pending()) == (1, 0)


async def test_del_18_a_message_that_the_runner_does_not_know_waits_for_one_that_does(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It is never answered, and what the same entity is sent later does not overtake it."""
    old, new = cluster.app(), cluster.app()

    class Old(Probe):
        note = None  # type: ignore[assignment]  # a version of the code that has no such message

    cluster.actor(old, Old, type="Probe")
    probe = cluster.actor(new, Probe)
    member = await cluster.start(old, "old")
    with caplog.at_level(logging.WARNING):
        unknown = await probe.at("a").note.send("x")
        later = await probe.at("a").add.send(1, "k")
        assert await probe.at(neighbour("a")).add(2, "k") == 2
    assert "request.unknown_message" in caplog.text
    assert await cluster.pending() == 2
    await cluster.stop(member)
    await cluster.start(new, "new")
    assert [await unknown, await later] == [1, 1]
    assert cluster.stage.journal[-2:] == ["note a x", "add a k"]


async def test_del_19_nobody_knows_the_type_is_what_the_caller_hears_at_its_timeout(
    cluster: LiveCluster,
) -> None:
    empty, app = cluster.app(), cluster.app()
    cluster.actor(empty, Nobody)
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(empty)
    with pytest.raises(RunnerNotRegistered) as refused:
        await probe.note.options(timeout=0.3).ask("x")
    assert refused.value.accepted is Accepted.YES
    assert (await cluster.pending(), await cluster.replies()) == (1, 0)
    with pytest.raises(RunnerNotRegistered):
        await probe.peek.options(timeout=0.3).ask()


async def test_del_21_a_send_is_processed_though_nobody_waits(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await probe.note.send("x")
    await cluster.stage.saw("note a x")
    assert await probe.note("y") == 2


async def test_del_22_a_send_returns_while_the_handler_still_runs(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    receipt = await probe.note.send("x", gate="g")
    await cluster.stage.saw("note a x")
    assert await cluster.pending() == 1
    cluster.stage.open("g")
    assert await receipt == 1


async def test_del_23_a_volatile_send_returns_while_the_handler_still_runs(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    await probe.hold.send("x", "g")
    await cluster.stage.saw("hold a x")


async def test_del_24_a_volatile_send_is_tried_again_until_redis_takes_it(
    private_servers: PrivateServers, namespace: str
) -> None:
    """And TRN-04: what it does not take in time is not accepted, and may be sent again."""
    urls = private_servers.postgres_url, private_servers.redis_url
    async with live_cluster(*urls, namespace) as cluster:
        app = cluster.app()
        probe = cluster.actor(app, Probe).at("a")
        await cluster.start(app)
        await probe.hold.send("before", "")
        private_servers.valkey.kill()
        with pytest.raises(SendTimeout) as refused:
            await probe.hold.options(timeout=0.2).ask("lost", "")
        assert (refused.value.accepted, refused.value.retryable) == (Accepted.NO, True)
        sending = asyncio.create_task(probe.hold.send("after", ""))
        private_servers.valkey.start()
        await sending
        await cluster.stage.saw("hold a before", "hold a after")
        assert "hold a lost" not in cluster.stage.journal


class Helper(Actor):
    """Its second activation is another one than the first."""

    total: int = 0

    async def on_activate(self) -> None:
        self._stage.tell(f"activate {self.id}")

    @message
    async def add(self, gate: str = "") -> int:
        await self._stage.enter(f"add {self.id}", gate)
        self.total += 1
        return self.total


async def test_del_27_requests_behind_a_turn_that_was_not_applied_are_read_again(
    cluster: LiveCluster,
) -> None:
    """Somebody else changed the state: the turn is dropped with its activation, and all run on the new one."""
    app = cluster.app()
    helper = cluster.actor(app, Helper).at("a")
    await cluster.start(app)
    assert await helper.add() == 1
    cluster.stage.close("g")
    receipts = [await helper.add.send(gate="g") for _ in range(3)]
    await cluster.stage.until(lambda: cluster.stage.journal.count("add a") == 2, "the second turn")
    await cluster.rows("UPDATE entity SET version = version + 1")
    cluster.stage.open("g")
    assert [await receipt for receipt in receipts] == [2, 3, 4]
    assert cluster.stage.journal.count("activate a") == 2


async def as_async(value: bool) -> bool:
    return value
