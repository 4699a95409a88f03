"""Cancelling requests, on a real cluster: exactly one reply, and the same one for every repeat (see README.md here)."""

import asyncio

import pytest

from entityq import CancelOutcome, EntityQError, Failure, Interrupted, RetryPolicy, message
from tests.support.live import LiveCluster, Member, soon
from tests.support.probe import Probe
from tests.support.stage import Actor

# Longer than any test.
NEVER = RetryPolicy(initial=1e7, maximum=1e7, total=1e9, attempts=3)


class Refused(Failure):
    pass


class Patient(Actor):
    """Each handler changes the state, sends, and waits at the gate "g"."""

    lines: list[str] = []

    @message(primary_key="key")
    async def wait(self, key: str) -> list[str]:
        self.lines.append(key)
        await type(self).at("other").note.send(key)
        try:
            await self._stage.enter(f"wait {key}", "g")
        except asyncio.CancelledError:
            self._stage.tell(f"interrupted {key}")
            raise
        return self.lines

    @message
    async def swallow(self, how: str) -> str:
        self.lines.append(how)
        try:
            await self._stage.enter(f"swallow {how}", "g")
        except asyncio.CancelledError:
            if how == "failure":
                raise Refused from None
            if how == "defect":
                raise ValueError(how) from None
        return "in the end"

    @message
    async def clean_up(self) -> str:
        try:
            await self._stage.enter("clean up", "g")
        except asyncio.CancelledError:
            await self._stage.enter("cleaning", "h")
            self._stage.tell("clean")
            raise
        return "never"

    @message(uninterruptible=True)
    async def insist(self) -> str:
        self.lines.append("insisted")
        await self._stage.enter("insist", "g")
        return "done"

    @message
    def block(self) -> str:
        self.lines.append("blocked")
        self._stage.enter_from_thread("block", "g")
        return "done"

    @message(concurrent=True)
    async def look(self) -> str:
        await self._stage.enter("look", "g")
        return "seen"

    @message
    async def note(self, text: str) -> list[str]:
        self._stage.tell(f"note {self.id} {text}")
        self.lines.append(text)
        return self.lines

    @message(persisted=False)
    async def read(self) -> list[str]:
        return self.lines

    @message(retry=NEVER)
    async def fail(self) -> None:
        self._stage.tell("fail")
        raise ValueError("again")

    @message(persisted=False)
    async def volatile(self) -> None:
        self._stage.tell("volatile")


async def heard(member: Member, request_id: int) -> bool:
    """Whether the runner knows that the running request is cancelled."""
    requests = [request for activation in member.life.residents for request in activation.running.values()]
    return any(request.cancelled for request in requests if request.request_id == request_id)


async def as_async(value: bool) -> bool:
    return value


async def test_del_05_a_running_request_is_interrupted_once(cluster: LiveCluster) -> None:
    """Its key stays interrupted, its state is as before the turn, and what it has sent is not sent."""
    app = cluster.app()
    patient = cluster.actor(app, Patient, concurrency=2).at("a")
    await cluster.start(app)
    await patient.note("before")
    cluster.stage.close("g")
    receipt = await patient.wait.send("k")
    await cluster.stage.saw("wait k")
    joined = asyncio.create_task(patient.wait("k"))
    assert await receipt.cancel() is CancelOutcome.REQUESTED
    with pytest.raises(Interrupted, match="wait to Patient/a was cancelled while it ran"):
        await receipt
    with pytest.raises(Interrupted):
        await joined
    with pytest.raises(Interrupted):
        await patient.wait("k")
    assert cluster.stage.lines("interrupted ") == ["k"]
    assert cluster.stage.journal.count("wait k") == 1
    assert await patient.note("after") == ["before", "after"]
    assert (await cluster.requests(), await cluster.replies(), await cluster.pending()) == (3, 3, 0)
    assert await cluster.rows("SELECT count(*) FROM dead_letter") == [0]


async def test_a_request_behind_others_is_answered_without_running(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    first = await patient.wait.send("1")
    await cluster.stage.saw("wait 1")
    second, third = await patient.wait.send("2"), await patient.note.send("3")
    assert await app.cancel(second.request_id) is CancelOutcome.REQUESTED
    with pytest.raises(Interrupted, match="wait to Patient/a was cancelled before it ran"):
        await second
    assert cluster.stage.journal == ["wait 1"]
    cluster.stage.open("g")
    assert (await first, await third) == (["1"], ["1", "3"])
    with pytest.raises(Interrupted):
        await patient.wait("2")
    assert await cluster.pending() == 0
    await soon(lambda: as_async(len(member.life.prefetch) == 0), "the end of the turns")


async def test_del_14_a_request_that_waits_for_a_full_mailbox_is_answered_at_once(
    cluster: LiveCluster,
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe, mailbox_capacity=10).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await probe.note.send("0", gate="g")]
    receipts += [await probe.note.send(str(number)) for number in range(1, 12)]

    async def overflowed() -> bool:
        return len(member.life.deferrals) == 1

    await soon(overflowed, "the overflow")
    assert await receipts[10].cancel() is CancelOutcome.REQUESTED
    with pytest.raises(Interrupted):
        await receipts[10]
    assert cluster.stage.lines("note a ") == ["0"]
    cluster.stage.open("g")
    del receipts[10]
    assert [await receipt for receipt in receipts] == list(range(1, 12))
    assert (await cluster.replies(), await cluster.pending()) == (12, 0)


async def test_what_was_answered_stays_answered(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient).at("a")
    await cluster.start(app)
    receipt = await patient.wait.send("k")
    assert await receipt == ["k"]
    assert await receipt.cancel() is CancelOutcome.ANSWERED
    assert await patient.wait("k") == ["k"]


async def test_a_cancel_can_be_repeated(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient).at("a")
    receipt = await patient.wait.send("k")
    assert [await receipt.cancel(), await receipt.cancel()] == [CancelOutcome.REQUESTED] * 2
    await cluster.start(app)
    with pytest.raises(Interrupted):
        await receipt
    assert await receipt.cancel() is CancelOutcome.CANCELLED
    assert await asyncio.to_thread(receipt.cancel_blocking) is CancelOutcome.CANCELLED
    assert await asyncio.to_thread(app.cancel_blocking, receipt.request_id) is CancelOutcome.CANCELLED
    assert cluster.stage.journal == []
    await asyncio.to_thread(app.close_blocking)


async def test_a_request_that_is_unknown_cannot_be_cancelled(cluster: LiveCluster) -> None:
    app = cluster.app()
    cluster.actor(app, Patient)
    with pytest.raises(EntityQError, match="There is no request 5 in the namespace"):
        await app.cancel(5)


async def test_a_volatile_request_cannot_be_cancelled(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient).at("a")
    await cluster.start(app)
    receipt = await patient.volatile.send()
    with pytest.raises(EntityQError, match="volatile to Patient/a is volatile"):
        await receipt.cancel()
    await receipt


async def test_a_caller_that_waits_no_more_cancels_nothing(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    asking = asyncio.create_task(patient.wait("k"))
    await cluster.stage.saw("wait k")
    asking.cancel()
    await asyncio.wait([asking])
    cluster.stage.open("g")
    assert await patient.wait("k") == ["k"]
    assert cluster.stage.lines("interrupted ") == []


async def test_a_handler_that_ends_otherwise_has_its_own_reply(cluster: LiveCluster) -> None:
    """As a task of asyncio that is cancelled; but a defect is not tried again."""
    app = cluster.app()
    patient = cluster.actor(app, Patient, retry=NEVER).at("a")
    await cluster.start(app)
    cluster.stage.close("g")

    async def cancelled(how: str) -> str:
        receipt = await patient.swallow.send(how)
        await cluster.stage.saw(f"swallow {how}")
        assert await receipt.cancel() is CancelOutcome.REQUESTED
        return await receipt

    assert await cancelled("value") == "in the end"
    with pytest.raises(Refused):
        await cancelled("failure")
    with pytest.raises(Interrupted):
        await cancelled("defect")
    assert await patient.read() == ["value"]


async def test_a_handler_is_interrupted_once_and_waited_for(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g", "h")
    receipt, after = await patient.clean_up.send(), await patient.note.send("after")
    await cluster.stage.saw("clean up")
    await receipt.cancel()
    await cluster.stage.saw("cleaning")
    assert await receipt.cancel() is CancelOutcome.REQUESTED
    # What is told of another request comes after what was told of this one.
    other = await patient.note.send("cancelled")
    await other.cancel()
    with pytest.raises(Interrupted):
        await other
    assert cluster.stage.journal == ["clean up", "cleaning"]
    assert await heard(member, receipt.request_id)
    cluster.stage.open("h")
    with pytest.raises(Interrupted):
        await receipt
    assert await after == ["after"]
    assert cluster.stage.journal == ["clean up", "cleaning", "clean", "note a after"]


async def test_a_request_that_the_code_does_not_know_can_be_cancelled(cluster: LiveCluster) -> None:
    old, new = cluster.app(), cluster.app()

    class Old(Patient):
        note = None  # type: ignore[assignment]  # a version of the code that has no such message

    cluster.actor(old, Old, type="Patient")
    patient = cluster.actor(new, Patient).at("a")
    member = await cluster.start(old)
    receipt = await patient.note.send("x")

    async def left() -> bool:
        return any(owned.blocked for owned in member.life.shards)

    await soon(left, "the request that is left for newer code")
    await receipt.cancel()
    with pytest.raises(Interrupted):
        await receipt
    assert await cluster.pending() == 0


async def test_an_uninterruptible_handler_runs_to_its_end(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await patient.insist.send()
    await cluster.stage.saw("insist")
    assert await receipt.cancel() is CancelOutcome.REQUESTED
    await soon(lambda: heard(member, receipt.request_id), "the cancel in the runner")
    cluster.stage.open("g")
    assert await receipt == "done"
    assert await receipt.cancel() is CancelOutcome.ANSWERED
    assert await patient.read() == ["insisted"]


async def test_a_handler_in_a_thread_runs_to_its_end_for_nothing(cluster: LiveCluster) -> None:
    """No other turn begins before it has ended."""
    app = cluster.app()
    cls = cluster.actor(app, Patient)
    patient = cls.at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await patient.block.send()
    await cluster.stage.saw("block")
    after = await patient.note.send("after")
    assert await receipt.cancel() is CancelOutcome.REQUESTED
    await soon(lambda: heard(member, receipt.request_id), "the cancel in the runner")
    assert await cls.at("b").note("beside") == ["beside"]
    assert cluster.stage.journal == ["block", "note b beside"]
    cluster.stage.open("g")
    with pytest.raises(Interrupted):
        await receipt
    assert await after == ["after"]


async def test_a_concurrent_request_is_interrupted_beside_another_turn(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient, concurrency=3).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    ordered, beside = await patient.wait.send("k"), await patient.look.send()
    await cluster.stage.saw("wait k", "look")
    await beside.cancel()
    with pytest.raises(Interrupted):
        await beside
    cluster.stage.open("g")
    assert await ordered == ["k"]


async def test_a_backoff_ends_when_its_request_is_cancelled(cluster: LiveCluster) -> None:
    """What is behind it goes on at once."""
    app = cluster.app()
    patient = cluster.actor(app, Patient).at("a")
    member = await cluster.start(app)
    failing = await patient.fail.send()
    behind = await patient.note.send("behind")

    async def in_backoff() -> bool:
        return len(member.life.deferrals) == 1

    await soon(in_backoff, "the backoff")
    await failing.cancel()
    with pytest.raises(Interrupted):
        await failing
    assert await behind == ["behind"]
    assert cluster.stage.journal.count("fail") == 1


async def test_a_parked_request_is_answered_by_who_cancels(cluster: LiveCluster) -> None:
    app = cluster.app()
    patient = cluster.actor(app, Patient, head_of_line="park").at("a")
    await cluster.start(app)
    failing = await patient.fail.send()

    async def parked() -> bool:
        return await cluster.rows("SELECT count(*) FROM timer") == [1]

    await soon(parked, "the parked request")
    assert await failing.cancel() is CancelOutcome.CANCELLED
    with pytest.raises(Interrupted):
        await failing
    assert await cluster.rows("SELECT count(*) FROM timer") == [0]
    assert await cluster.pending() == 0
