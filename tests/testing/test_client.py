"""What only the test client has; how entities behave in it is in tests/conformance."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

from entityq import (
    Accepted,
    Broadcast,
    CancelOutcome,
    Entity,
    EntityQ,
    EntityQError,
    Interrupted,
    PrimaryKeyConflict,
    RunnerNotRegistered,
    SendTimeout,
    message,
    testing,
)
from examples.bank import Account, InsufficientFunds, add
from tests.support.waiting import eventually_async

app = EntityQ("testing", ask_timeout=5.0, max_reply=2048, namespace="testing")


@app.entity
class Ledger(Entity):
    lines: list[str] = []

    @message
    async def record(self, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @message
    async def read(self) -> list[str]:
        return self.lines


@app.entity(max_idle=0.5)
class Clerk(Entity):
    # What happened, for the tests: one list for all.
    ended = list[str]()

    @message
    async def tell(self, line: str, times: int = 1) -> None:
        for _ in range(times):
            await Ledger.at("l").record.send(line)

    @message
    async def tell_later(self, line: str, seconds: float) -> None:
        await Ledger.at("l").record.options(delay=seconds).send(line)

    @message
    async def pass_on(self, line: str, others: int) -> None:
        if others:
            await Clerk.at(f"{self.id}{others}").pass_on.send(line, others - 1)
        else:
            await Ledger.at("l").record.send(line)

    @message
    async def sleep(self) -> None:
        await asyncio.Event().wait()

    async def on_deactivate(self) -> None:
        type(self).ended.append(self.id)


async def test_the_bank_of_the_docs() -> None:
    async with testing.client(Account) as client:
        account = client.at("acct-1")
        assert await account.deposit(10, reference="r-1") == 10
        assert await account.deposit(10, reference="r-1") == 10
        with pytest.raises(PrimaryKeyConflict):
            await account.deposit(11, reference="r-1")
        with pytest.raises(InsufficientFunds) as caught:
            await account.withdraw(50, reference="r-2")
        assert caught.value.balance == 10
        assert await account.read() == 10


def test_the_bank_of_the_docs_in_sync_code() -> None:
    with testing.client(Account, add) as client:
        account = client.at("acct-1")
        assert account.deposit.call(10, reference="r-1") == 10
        receipt = account.deposit.delay(10, reference="r-1")
        assert (receipt.get(), receipt.duplicate) == (10, True)
        assert client.task(add).call(2, 3) == 5
        assert asyncio.run(account.deposit.ask(1, reference="r-3")) == 11
        client.settle_blocking()
    assert not [thread for thread in threading.enumerate() if thread.name == "entityq client"]


async def test_each_client_starts_with_nothing() -> None:
    for _ in range(2):
        async with testing.client(Account) as client:
            assert await client.at("a").deposit(1, reference="r-1") == 1


async def test_settle_waits_for_what_turns_have_sent() -> None:
    async with testing.client(Clerk, Ledger) as client:
        await client.at("c").pass_on.send("line", 5)
        await client.settle()
        assert await client.at("l", Ledger).read() == ["line"]


async def test_settle_has_a_deadline() -> None:
    impatient = EntityQ("testing", ask_timeout=0.05)

    @impatient.entity
    class Sleeper(Entity):
        @message
        async def sleep(self) -> None:
            await asyncio.Event().wait()

    async with testing.client(Sleeper) as client:
        await client.at("s").sleep.send()
        with pytest.raises(SendTimeout, match="1 requests"):
            await client.settle()
        with pytest.raises(SendTimeout) as caught:
            await client.at("t").sleep()
        assert caught.value.accepted is Accepted.YES


async def test_an_end_cancels_running_turns_and_deactivates() -> None:
    Clerk.ended.clear()
    async with testing.client(Clerk, Ledger) as client:
        await client.at("a").tell("line")
        receipt = await client.at("b").sleep.send()
        waiting = asyncio.ensure_future(receipt)
        await client.at("b").status()
    with pytest.raises(EntityQError, match="closed before the request was answered"):
        await waiting
    assert "a" in Clerk.ended
    with pytest.raises(EntityQError, match="not open"):
        await client.at("a").tell("line")


@app.entity(mailbox_capacity=1)
class Bell(Entity):
    heard = list[str]()

    @message
    async def mount(self) -> None: ...

    @message(persisted=False)
    async def ring(self, text: str) -> None:
        self.heard.append(f"{self.id} {text}")

    @message
    async def ring_all(self, text: str) -> int:
        return (await Bell.ring.broadcast(text)).activations


async def test_a_broadcast_reaches_what_is_in_memory() -> None:
    Bell.heard.clear()
    async with testing.client(Bell, Ledger) as client:
        for bell in ("a", "b"):
            await client.at(bell).mount()
        await client.at("l", Ledger).read()
        reached = await client.message(Bell.ring).broadcast("noon")
        assert reached == Broadcast(runners=1, activations=2, refused=0, unanswered=0)
        await client.settle()
        assert sorted(Bell.heard) == ["a noon", "b noon"]


async def test_a_broadcast_of_a_turn_stays_in_the_client() -> None:
    Bell.heard.clear()
    async with testing.client(Bell) as client:
        await client.at("a").mount()
        # Its own mailbox is full: of the one request that sends it.
        assert await client.at("b").ring_all("noon") == 1
        await client.settle()
        assert Bell.heard == ["a noon"]


async def test_a_broadcast_needs_a_client_that_has_the_type() -> None:
    async with testing.client(Ledger) as client:
        with pytest.raises(RunnerNotRegistered, match=r"Add it: testing.client\(\.\.\., Bell\)"):
            await client.message(Bell.ring).broadcast("noon")


def test_a_broadcast_from_sync_code() -> None:
    Bell.heard.clear()
    with testing.client(Bell) as client:
        client.at("a").mount.call()
        assert client.message(Bell.ring).broadcast_blocking("noon").activations == 1
        client.settle_blocking()
    assert Bell.heard == ["a noon"]


async def test_time_passes_when_a_test_says_so() -> None:
    async with testing.client(Clerk, Ledger) as client:
        ledger = client.at("l", Ledger)
        late = await ledger.record.options(delay=60).send("late")
        await ledger.record.options(eta=datetime.now(UTC) + timedelta(seconds=30)).send("early")
        await ledger.record.options(delay=60).send("late, too")
        await client.at("c").tell_later("by a turn", 60)
        await client.settle()
        assert await ledger.read() == []
        await client.advance(59)
        await client.settle()
        assert await ledger.read() == ["early"]
        await client.advance(1)
        await client.settle()
        assert await ledger.read() == ["early", "late", "late, too", "by a turn"]
        assert await late == 2


async def test_what_expires_in_a_test() -> None:
    async with testing.client(Ledger) as client:
        record = client.at("l").record.options(delay=60)
        never = await record.options(expires=59).send("never")
        in_time = await record.options(expires=3600).send("in time")
        await client.advance(60)
        with pytest.raises(Interrupted, match="has expired"):
            await never
        assert await in_time == 1


def test_time_passes_in_sync_code() -> None:
    with testing.client(Ledger) as client:
        receipt = client.at("l").record.options(delay=60).delay("late")
        client.advance_blocking(60)
        assert receipt.get() == 1


async def test_idle_entities_leave_memory() -> None:
    async def left_memory() -> bool:
        return Clerk.ended == ["a"]

    Clerk.ended.clear()
    async with testing.client(Clerk, Ledger) as client:
        await client.at("a").tell("line")
        await eventually_async(left_memory)
        await client.at("a").tell("line")


async def test_who_is_not_in_it_gets_nothing() -> None:
    async with testing.client(Clerk) as client:
        with pytest.raises(RunnerNotRegistered, match=r"Add it: testing.client\(\.\.\., Ledger\)"):
            await client.at("l", Ledger).record("line")


async def test_a_handler_that_sends_to_who_is_not_in_it_has_a_defect() -> None:
    async with testing.client(Clerk) as client:
        with pytest.raises(EntityQError, match="RunnerNotRegistered"):
            await client.at("c").tell("line")


async def test_limits_are_those_of_the_app() -> None:
    async with testing.client(Ledger) as client:
        await client.at("l").record("x" * 3000)
        with pytest.raises(EntityQError, match="PayloadTooLarge"):
            await client.at("l").read()


async def test_sync_code_in_a_running_loop_is_refused() -> None:
    with pytest.raises(EntityQError, match="block the running event loop"):
        testing.client(Account).__enter__()
    async with testing.client(Account) as client:
        with pytest.raises(EntityQError, match="block the running event loop"):
            client.at("a").deposit.call(1, reference="r-1")


def test_members_must_belong_to_one_app() -> None:
    class Stray(Entity):
        pass

    with pytest.raises(TypeError, match="Stray belongs to no app"):
        testing.client(Stray)
    with pytest.raises(TypeError, match="one app"):
        testing.client(Account, Ledger)
    with pytest.raises(TypeError, match="has no entities"):
        testing.client(add).at("a")


# ----- cancelling


@app.entity
class Patient(Entity):
    lines: list[str] = []

    @message(primary_key="line")
    async def write(self, line: str, seconds: float = 0.0) -> list[str]:
        self.lines.append(line)
        await asyncio.sleep(seconds)
        return self.lines


async def test_requests_can_be_cancelled() -> None:
    """One that runs, one behind it, one whose time has not come, one that is answered."""
    async with testing.client(Patient) as client:
        patient = client.at("a")
        runs, waits = await patient.write.send("1", 60), await patient.write.send("2")
        later = await patient.write.options(delay=60).send("3")
        assert await waits.cancel() is CancelOutcome.CANCELLED
        assert await later.cancel() is CancelOutcome.CANCELLED
        assert await runs.cancel() is CancelOutcome.REQUESTED
        for receipt in (runs, waits, later):
            with pytest.raises(Interrupted, match="write to Patient/a was cancelled"):
                await receipt
        assert await runs.cancel() is CancelOutcome.CANCELLED
        with pytest.raises(Interrupted):
            await patient.write("2")
        await client.advance(120)
        answered = await patient.write.send("4")
        assert await answered == ["4"]
        assert await answered.cancel() is CancelOutcome.ANSWERED
        with pytest.raises(EntityQError, match="This test client has no request 5"):
            await client.sender().cancel(5)


def test_sync_code_can_cancel() -> None:
    with testing.client(Patient) as client:
        receipt = client.at("a").write.delay("1", 60)
        assert receipt.cancel_blocking() in (CancelOutcome.REQUESTED, CancelOutcome.CANCELLED)
        with pytest.raises(Interrupted):
            receipt.get(timeout=5)
