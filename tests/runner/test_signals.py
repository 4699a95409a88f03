"""Handlers that wait for signals, on a real cluster of one runner."""

import asyncio
from dataclasses import dataclass

import psycopg
import pytest

from entityq import (
    EntityDefect,
    EntityQError,
    Interrupted,
    MalformedMessage,
    RetryPolicy,
    SignalOutcome,
    SignalTimeout,
    message,
)
from entityq.postgres.connect import connect
from tests.support.live import LiveCluster, soon
from tests.support.servers import SCHEMA
from tests.support.stage import Actor

LONG = 1e6


@dataclass
class Decision:
    approved: bool
    by: str


class Till(Actor):
    """What it tells begins with its id; `runs` counts attempts in memory."""

    balance: int = 100

    @message
    async def withdraw(self, amount: int, within: float | None = None) -> str:
        self.balance -= amount
        self._stage.tell(f"{self.id} waits {self.balance} {self.context.signal_token('approval')}")
        decision = await self.context.wait_for("approval", Decision, timeout=within)
        self._stage.tell(f"{self.id} goes on")
        if not decision.approved:
            self.balance += amount
        return decision.by

    @message
    def withdraw_in_thread(self, amount: int) -> int:
        self.balance -= amount
        token = self.context.signal_token("approval")
        self._stage.enter_from_thread(f"{self.id} waits {self.balance} {token}")
        return self.context.wait_for_blocking("approval", int) + self.balance

    @message
    async def twice(self) -> list[int]:
        self._stage.tell(f"{self.id} first {self.context.signal_token('first')}")
        first = await self.context.wait_for("first", int)
        self._stage.tell(f"{self.id} second {self.context.signal_token('second')}")
        second = await self.context.wait_for("second", int)
        return [first, second]

    @message
    async def ask_before(self, other: str) -> str:
        count = await type(self).at(other).count()
        self._stage.tell(f"{self.id} waits {count} {self.context.signal_token('go')}")
        return f"{await self.context.wait_for('go')} {count}"

    @message
    async def count(self) -> int:
        self.balance += 1
        self._stage.tell(f"{self.id} counted")
        return self.balance

    @message
    async def or_else(self, within: float, fail: bool = False) -> str:
        self._stage.tell(f"{self.id} waits {self.context.signal_token('maybe')}")
        try:
            return str(await self.context.wait_for("maybe", timeout=within))
        except TimeoutError as error:
            self._stage.tell(f"{self.id} timed out {self.context.attempt}")
            if fail and self.context.attempt == 1:
                raise ValueError("again") from error
            return type(error).__name__

    @message
    async def swallow(self) -> None:
        await asyncio.gather(self.context.wait_for("never"), return_exceptions=True)

    @message
    async def in_group(self) -> str:
        self._stage.tell(f"{self.id} waits {self.context.signal_token('go')}")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(self.context.wait_for("go", str))
        return waiting.result()

    @message
    async def send_and_write(self, other: str) -> str:
        async with self.context.transaction() as connection:
            await connection.execute("INSERT INTO approved (id) VALUES (%s)", [self.id])
        await type(self).at(other).count.send()
        self._stage.tell(f"{self.id} waits {self.context.signal_token('go')}")
        return str(await self.context.wait_for("go"))

    @message(concurrent=True)
    async def concurrent(self) -> None:
        await self.context.wait_for("never")

    @message
    async def gated(self, gate: str) -> str:
        await self._stage.enter(f"{self.id} waits {self.context.signal_token('go')}", gate)
        return str(await self.context.wait_for("go"))


async def token_of(cluster: LiveCluster, start: str) -> str:
    await cluster.stage.until(lambda: bool(cluster.stage.lines(start)), start)
    return cluster.stage.lines(start)[-1].split()[-1]


async def suspended(cluster: LiveCluster, count: int = 1) -> None:
    async def on_record() -> bool:
        (rows,) = await cluster.rows(
            "SELECT (SELECT count(*) FROM pending WHERE suspended) + (SELECT count(*) FROM timer WHERE suspended)"
        )
        return bool(rows == count)

    await soon(on_record, f"{count} suspensions on record")


async def test_it_waits_and_goes_on_with_the_value(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    receipt = await till.withdraw.send(30)
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    status = await till.status()
    assert (status.state, status.pending_signal and status.pending_signal.name) == ("suspended", "approval")
    assert status.pending_signal is not None and status.pending_signal.token == token
    assert token not in repr(status)
    assert await app.signal(token, {"approved": True, "by": "ann"}) is SignalOutcome.SIGNALLED
    assert await receipt == "ann"
    # The second attempt began with the fields as they were before the first.
    assert [line.split()[0] for line in cluster.stage.lines("a waits ")] == ["70", "70"]
    assert (await till.status()).state == "complete"
    assert await app.signal(token, {"approved": False, "by": "bob"}) is SignalOutcome.ALREADY
    assert await cluster.pending() == 0


async def test_a_signal_before_the_wait_is_kept(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    cluster.stage.close("early")
    receipt = await till.gated.send("early")
    token = await token_of(cluster, "a waits")
    assert await app.signal(token, 1) is SignalOutcome.SIGNALLED
    assert await app.signal(token, 2) is SignalOutcome.ALREADY
    cluster.stage.open("early")
    assert await receipt == "1"
    assert len(cluster.stage.lines("a waits")) == 1


async def test_under_block_the_others_wait_and_hold_no_place(cluster: LiveCluster) -> None:
    app = cluster.app(max_turns=2, prefetch=8, max_resident=2)
    tills = cluster.actor(app, Till)
    await cluster.start(app)
    receipts = {name: await tills.at(name).withdraw.send(10) for name in "abcd"}
    behind = [await tills.at(name).count.send() for name in "abcd"]
    await suspended(cluster, 4)
    for number in range(6):
        assert await tills.at(f"other {number}").count() == 101
    assert cluster.stage.lines("a counted") == []
    for name in "abcd":
        token = await token_of(cluster, f"{name} waits")
        assert await app.signal(token, {"approved": True, "by": name}) is SignalOutcome.SIGNALLED
    assert [await receipts[name] for name in "abcd"] == list("abcd")
    assert [await receipt for receipt in behind] == [91] * 4


async def test_under_park_the_others_go_on(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till, head_of_line="park").at("a")
    await cluster.start(app)
    receipt = await till.withdraw.send(10)
    await suspended(cluster)
    assert await till.count() == 101
    status = await till.status()
    assert status.state == "suspended"
    assert status.pending_signal is not None
    assert (
        await app.signal(status.pending_signal.token, {"approved": True, "by": "x"})
        is SignalOutcome.SIGNALLED
    )
    assert await receipt == "x"
    assert await till.count() == 92
    assert await cluster.rows("SELECT count(*) FROM timer") == [0]


@pytest.mark.parametrize("head_of_line", ["block", "park"])
async def test_it_survives_a_crash_and_a_change_of_the_owner(cluster: LiveCluster, head_of_line: str) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till, head_of_line=head_of_line).at("a")
    first = await cluster.start(app)
    receipt = await till.withdraw.send(10)
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    await cluster.crash(first)
    second = await cluster.start(app, "r2")
    assert await till.at("other").count() == 101
    assert len(cluster.stage.lines("a waits")) == 1
    await cluster.stop(second)
    # Nobody has the shard.
    assert await app.signal(token, {"approved": True, "by": "x"}) is SignalOutcome.SIGNALLED
    await cluster.start(app, "r3")
    assert await receipt == "x"


@pytest.mark.parametrize("head_of_line", ["block", "park"])
async def test_a_wait_that_another_runner_stored_is_ended_at_the_owner(
    cluster: LiveCluster, head_of_line: str
) -> None:
    app = cluster.app(sweep_interval=LONG)
    till = cluster.actor(app, Till, head_of_line=head_of_line).at("a")
    first = await cluster.start(app)
    receipt = await till.withdraw.send(10)
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    await cluster.stop(first)
    await cluster.start(app, "r2")
    assert await app.signal(token, {"approved": True, "by": "x"}) is SignalOutcome.SIGNALLED
    assert await receipt == "x"


async def test_two_signals_in_order_and_the_second_one_early(cluster: LiveCluster) -> None:
    app = cluster.app()
    tills = cluster.actor(app, Till)
    await cluster.start(app)
    receipt = await tills.at("a").twice.send()
    first = await token_of(cluster, "a first")
    await suspended(cluster)
    assert await app.signal(first, 1) is SignalOutcome.SIGNALLED
    second = await token_of(cluster, "a second")
    await suspended(cluster)
    runs = len(cluster.stage.journal)
    # It waits for the other one: this one wakes nobody.
    assert await app.signal(first, 7) is SignalOutcome.ALREADY
    assert (await tills.at("a").status()).state == "suspended"
    assert len(cluster.stage.journal) == runs
    assert await app.signal(second, 2) is SignalOutcome.SIGNALLED
    assert await receipt == [1, 2]
    assert (len(cluster.stage.lines("a first")), len(cluster.stage.lines("a second"))) == (3, 2)


async def test_an_ask_before_the_wait_is_joined(cluster: LiveCluster) -> None:
    app = cluster.app()
    tills = cluster.actor(app, Till)
    await cluster.start(app)
    receipt = await tills.at("a").ask_before.send("b")
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    assert await app.signal(token, "go") is SignalOutcome.SIGNALLED
    assert await receipt == "go 101"
    assert cluster.stage.lines("b counted") == [""]


async def test_what_an_attempt_did_that_waits_is_not_committed(
    cluster: LiveCluster, postgres_url: str
) -> None:
    app = cluster.app()
    tills = cluster.actor(app, Till)
    await cluster.start(app)
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE public.approved (id text PRIMARY KEY)")
    receipt = await tills.at("a").send_and_write.send("b")
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    assert await cluster.rows("SELECT count(*) FROM public.approved") == [0]
    assert await cluster.requests() == 1
    assert await app.signal(token, "go") is SignalOutcome.SIGNALLED
    assert await receipt == "go"
    await cluster.stage.saw("b counted")
    assert await cluster.rows("SELECT id FROM public.approved") == ["a"]
    assert await cluster.requests() == 2


@pytest.mark.parametrize("head_of_line", ["block", "park"])
async def test_its_time_passes_and_the_wait_raises(cluster: LiveCluster, head_of_line: str) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till, head_of_line=head_of_line).at("a")
    await cluster.start(app)
    receipt = await till.or_else.send(0.2)
    assert await receipt == SignalTimeout.__name__
    assert len(cluster.stage.lines("a waits")) == 2
    token = await token_of(cluster, "a waits")
    assert await app.signal(token, 1) is SignalOutcome.TIMED_OUT


async def test_a_wait_that_has_timed_out_stays_so_in_later_attempts(cluster: LiveCluster) -> None:
    app = cluster.app()
    policy = RetryPolicy(initial=0.01, maximum=0.01, attempts=3)
    till = cluster.actor(app, Till, retry=policy).at("a")
    await cluster.start(app)
    assert await till.or_else(0.2, fail=True) == SignalTimeout.__name__
    assert cluster.stage.lines("a timed out ") == ["1", "2"]


async def test_a_timeout_that_nobody_handles_is_a_defect(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till, retry=RetryPolicy(initial=LONG, maximum=LONG, total=1e9)).at("a")
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="waited for the signal 'approval'"):
        await till.withdraw(10, within=0.2)
    assert await till.count() == 101


async def test_a_value_that_does_not_fit_is_a_defect(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till, retry=RetryPolicy(initial=LONG, maximum=LONG, total=1e9)).at("a")
    await cluster.start(app)
    receipt = await till.withdraw.send(10)
    token = await token_of(cluster, "a waits")
    assert await app.signal(token, {"approved": "perhaps"}) is SignalOutcome.SIGNALLED
    with pytest.raises(EntityDefect, match="the value of the signal 'approval': approved"):
        await receipt
    assert await app.signal(token, 1) is SignalOutcome.ALREADY


async def test_handlers_that_are_plain_functions_wait_too(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    receipt = await till.withdraw_in_thread.send(10)
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    outcome = await asyncio.to_thread(app.signal_blocking, token, 5)
    assert outcome is SignalOutcome.SIGNALLED
    assert await receipt == 95
    app.close_blocking()


async def test_a_task_of_the_handler_waits(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    receipt = await till.in_group.send()
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    await app.signal(token, "go")
    assert await receipt == "go"


async def test_a_handler_that_swallows_the_end_is_a_defect(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till, retry=RetryPolicy(initial=LONG, maximum=LONG, total=1e9)).at("a")
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="its handler caught what ends the attempt"):
        await till.swallow()
    assert (await till.status()).state == "failed"


async def test_turns_without_an_order_cannot_wait(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="cannot wait for signals"):
        await till.concurrent()


async def test_forged_and_foreign_tokens_write_nothing(cluster: LiveCluster) -> None:
    app = cluster.app(max_payload=5_000)
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    receipt = await till.withdraw.send(10)
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    for forged in ("", "x", "é", token[:-1], token + "A", token[:-1] + ("A" if token[-1] != "A" else "B")):
        with pytest.raises(MalformedMessage, match="no token"):
            await app.signal(forged, 1)
    with pytest.raises(EntityQError, match="the limit is"):
        await app.signal(token, "x" * 6_000)
    assert await cluster.rows("SELECT count(*) FROM signal WHERE value IS NOT NULL") == [0]
    await app.signal(token, {"approved": True, "by": "x"})
    assert await receipt == "x"


async def test_a_signal_after_the_answer_and_of_a_forgotten_request(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    cluster.stage.close("early")
    receipt = await till.gated.send("early")
    token = await token_of(cluster, "a waits")
    await receipt.cancel()
    cluster.stage.open("early")
    with pytest.raises(Interrupted):
        await receipt
    assert await app.signal(token, 1) is SignalOutcome.ANSWERED
    await till.forget()
    assert await app.signal(token, 1) is SignalOutcome.UNKNOWN
    assert await cluster.rows("SELECT count(*) FROM signal") == [0]


@pytest.mark.parametrize("head_of_line", ["block", "park"])
async def test_a_cancel_answers_what_is_suspended(cluster: LiveCluster, head_of_line: str) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till, head_of_line=head_of_line).at("a")
    await cluster.start(app)
    receipt = await till.withdraw.send(10)
    behind = await till.count.send()
    token = await token_of(cluster, "a waits")
    await suspended(cluster)
    await receipt.cancel()
    with pytest.raises(Interrupted):
        await receipt
    assert await behind == 101
    assert await app.signal(token, 1) is SignalOutcome.ANSWERED
    assert (await till.status()).state == "complete"


async def test_the_time_of_a_wait_does_not_count_for_expires(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    receipt = await till.or_else.options(expires=0.5).send(1.0)
    await suspended(cluster)
    assert await receipt == SignalTimeout.__name__


async def test_a_signal_whose_row_is_locked_while_the_suspension_is_stored_is_not_lost(
    cluster: LiveCluster, postgres_url: str
) -> None:
    """Both orders: somebody signals, and has not committed when the wait begins; and the other way round."""
    app = cluster.app(sweep_interval=LONG)
    tills = cluster.actor(app, Till)
    await cluster.start(app)
    async with await connect(postgres_url, schema=SCHEMA, application_name="signaller") as other:
        cluster.stage.close("a")
        receipt = await tills.at("a").gated.send("a")
        token = await token_of(cluster, "a waits")
        async with other.transaction():
            await other.execute(
                b"INSERT INTO signal (request_id, name, value, signalled_at) VALUES (%s, 'go', '\\x01', now())",
                [receipt.request_id],
            )
            cluster.stage.open("a")

            async def blocked() -> bool:
                rows = await cluster.rows("SELECT count(*) FROM pg_locks WHERE NOT granted")
                return bool(rows[0] > 0)

            await soon(blocked, "the suspension that waits for the signal's row")
        assert await receipt == "1"
        assert await app.signal(token, 2) is SignalOutcome.ALREADY
        # The suspension has its row, and not the one in pending: whoever signals now waits for it.
        cluster.stage.close("b")
        receipt = await tills.at("b").gated.send("b")
        token = await token_of(cluster, "b waits")
        async with other.transaction():
            await other.execute(b"SELECT FROM pending WHERE request_id = %s FOR UPDATE", [receipt.request_id])
            cluster.stage.open("b")
            await soon(blocked, "the suspension that waits for its pending row")
            signalling = asyncio.create_task(app.signal(token, 3))
        assert await signalling is SignalOutcome.SIGNALLED
        assert await receipt == "3"


async def test_signals_that_race_with_suspensions_are_never_lost(cluster: LiveCluster) -> None:
    app = cluster.app(sweep_interval=LONG)
    tills = cluster.actor(app, Till)
    await cluster.start(app)

    async def one(number: int) -> str:
        name = f"r{number}"
        receipt = await tills.at(name).gated.send("")
        token = await token_of(cluster, f"{name} waits")
        for _ in range(number % 7):
            await asyncio.sleep(0)
        await app.signal(token, number)
        return await receipt

    for start in range(0, 60, 20):
        async with asyncio.timeout(20):
            results = await asyncio.gather(*(one(number) for number in range(start, start + 20)))
        assert results == [str(number) for number in range(start, start + 20)]


async def test_a_requeued_request_may_wait_anew(cluster: LiveCluster) -> None:
    app = cluster.app()
    till = cluster.actor(app, Till).at("a")
    await cluster.start(app)
    receipt = await till.withdraw.send(10, within=0.1)
    with pytest.raises(EntityDefect):
        await receipt
    assert (await app.dead_letters.requeue(receipt.request_id)).done == (receipt.request_id,)
    await soon_waits(cluster, "a waits", 3)
    await app.signal(await token_of(cluster, "a waits"), {"approved": True, "by": "x"})

    async def answered() -> bool:
        return (await till.status()).state == "complete"

    await soon(answered, "the reply of the requeued request")


async def soon_waits(cluster: LiveCluster, start: str, count: int) -> None:
    await cluster.stage.until(lambda: len(cluster.stage.lines(start)) >= count, f"{count} of {start}")
