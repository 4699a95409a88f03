"""The commit statement on a real server: each turn wholly or not at all, and no turn fails its neighbours."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import psycopg
import pytest

from entityq.address import Address
from entityq.envelope import Envelope
from entityq.postgres.connect import Connection, connect
from entityq.postgres.facts import register_types
from entityq.postgres.outbox import NewRequest, insert_requests
from entityq.reply import Outcome, Reply
from entityq.runner.commit import Applied, Commit, NotApplied, SendConflict, Tenure
from entityq.runner.committer import Committer
from entityq.runner.request import Request
from tests.support.waiting import eventually_async

T = TypeVar("T")
IDS = count(1)
A, B, C = (Address("Account", name) for name in "abc")


@dataclass
class Bench:
    """A committer on a plain session, and the tables that it writes to."""

    connection: Connection
    namespace: str
    incarnation: int = 1
    epochs: dict[int, int] = field(default_factory=dict[int, int])
    statements: int = 0

    async def execute(self, query: bytes, parameters: Mapping[str, object]) -> Sequence[tuple[Any, ...]]:
        self.statements += 1
        return await (await self.connection.execute(query, parameters)).fetchall()

    def new_request(self, address: Address, *, key: bytes | None = None, payload: bytes = b"p") -> NewRequest:
        request_id = next(IDS)
        envelope = Envelope(request_id, address, "deposit", payload, True, 1).encode()
        return NewRequest(request_id, address, "deposit", key, payload.ljust(32, b"."), envelope)

    async def accept(self, *addresses: Address) -> list[Request]:
        rows = [self.new_request(address) for address in addresses]
        stored = await insert_requests(self.connection, self.namespace, rows)
        requests: list[Request] = []
        for row in rows:
            place = stored[row.request_id]
            self.epochs.setdefault(place.shard_id, 1)
            envelope = Envelope(row.request_id, row.address, "deposit", b"p", True, 1)
            requests.append(Request(envelope, place.shard_id, place.seq, None))
        return requests

    def turn(self, request: Request, *, version: int | None = 0, **rest: Any) -> Commit:
        reply = Reply(request.request_id, Outcome.SUCCESS, "", b"\x01")
        tenure = Tenure(self.incarnation, request.shard_id, rest.pop("epoch", 1))
        state = rest.pop("state", b"state")
        return Commit(tenure, request, reply, reply.encode(), version=version, state=state, **rest)

    async def flush(self, *commits: Commit) -> Sequence[object]:
        return await Committer(self, self.namespace, self.epochs).flush(commits)

    async def one(self, query: str, *values: object) -> Any:
        row = await (await self.connection.execute(query.encode(), values)).fetchone()
        found: Any = row
        return found if found is None or len(found) > 1 else found[0]

    async def state(self, address: Address) -> Any:
        return await self.one("SELECT version, state FROM entity WHERE entity_id = %s", address.id)

    async def reply(self, request: Request) -> Any:
        return await self.one("SELECT reply FROM outbox WHERE request_id = %s", request.request_id)


@pytest.fixture
async def bench(postgres_url: str, namespace: str) -> AsyncIterator[Bench]:
    async with await connect(postgres_url, schema="entityq", application_name="tests") as connection:
        await register_types(connection, namespace, {"Account": "default"})
        yield Bench(connection, namespace)


async def test_many_turns_are_one_statement(bench: Bench) -> None:
    requests = await bench.accept(A, B, C)
    outcomes = await bench.flush(*(bench.turn(request) for request in requests))
    assert outcomes == [Applied([])] * 3
    assert bench.statements == 1
    assert await bench.state(A) == (1, b"state")
    assert await bench.one("SELECT count(*) FROM pending") == 0


async def test_a_turn_whose_request_was_answered_meanwhile_writes_nothing(bench: Bench) -> None:
    first, second = await bench.accept(A, B)
    await bench.connection.execute(b"DELETE FROM pending WHERE request_id = %s", [first.request_id])
    outcomes = await bench.flush(bench.turn(first), bench.turn(second))
    assert isinstance(outcomes[0], NotApplied)
    assert outcomes[1] == Applied([])
    assert await bench.state(A) is None
    assert await bench.reply(first) is None


async def test_a_turn_on_an_old_version_writes_nothing(bench: Bench) -> None:
    first, second, third = await bench.accept(A, A, B)
    assert await bench.flush(bench.turn(first)) == [Applied([])]
    sent = bench.new_request(C)
    stale = bench.turn(second, version=0, state=b"stale", sends=[sent])
    outcomes = await bench.flush(stale, bench.turn(third))
    # A plain insert of a state that exists undoes the statement; alone it is tried again, and then given up.
    assert isinstance(outcomes[0], NotApplied)
    assert outcomes[1] == Applied([])
    assert await bench.state(A) == (1, b"state")
    assert await bench.reply(second) is None
    assert await bench.one("SELECT count(*) FROM outbox WHERE request_id = %s", sent.request_id) == 0
    assert await bench.flush(bench.turn(second, version=1, state=None)) == [Applied([])]
    assert await bench.state(A) == (2, b"state")


async def test_a_turn_of_another_lease_is_refused_without_a_statement(bench: Bench) -> None:
    (request,) = await bench.accept(A)
    (outcome,) = await bench.flush(bench.turn(request, epoch=2))
    assert isinstance(outcome, NotApplied)
    bench.incarnation = 2
    turn = bench.turn(request)
    bench.incarnation = 1
    (outcome,) = await bench.flush(turn)
    assert isinstance(outcome, NotApplied)
    assert bench.statements == 0


async def test_sends_commit_with_the_turn_and_in_order(bench: Bench) -> None:
    (request,) = await bench.accept(A)
    sends = [bench.new_request(B, key=key) for key in (b"z", b"m", b"a")]
    (outcome,) = await bench.flush(bench.turn(request, sends=sends))
    assert isinstance(outcome, Applied)
    assert [row.request for row in outcome.sent] == sends
    assert await bench.one("SELECT count(*) FROM pending") == 3


async def test_a_send_with_a_known_key_joins_or_conflicts(bench: Bench) -> None:
    first, second, third = await bench.accept(A, B, C)
    known = bench.new_request(B, key=b"k", payload=b"one")
    await insert_requests(bench.connection, bench.namespace, [known])
    same = bench.new_request(B, key=b"k", payload=b"one")
    other = bench.new_request(B, key=b"k", payload=b"two")
    new = bench.new_request(B, key=b"n")
    outcomes = await bench.flush(
        bench.turn(first, sends=[same]), bench.turn(second, sends=[new, other]), bench.turn(third)
    )
    assert outcomes == [Applied([]), SendConflict(known.request_id), Applied([])]
    assert await bench.state(B) is None
    assert await bench.one("SELECT count(*) FROM outbox WHERE request_id = %s", new.request_id) == 0


async def test_a_turn_that_sends_to_a_type_without_a_row_is_not_applied_without_it(bench: Bench) -> None:
    """The runner refuses it before; the statement is the last one to see it."""
    first, second = await bench.accept(A, B)
    lost = bench.new_request(Address("Nobody", "n"))
    outcomes = await bench.flush(bench.turn(first, sends=[bench.new_request(C), lost]), bench.turn(second))
    assert isinstance(outcomes[0], psycopg.errors.DivisionByZero)
    assert outcomes[1] == Applied([])
    assert await bench.state(A) is None
    assert await bench.reply(first) is None
    assert await bench.one("SELECT count(*) FROM outbox") == 2


async def test_two_turns_of_a_batch_that_send_the_same_key_both_commit(bench: Bench) -> None:
    first, second = await bench.accept(A, B)
    sends = [bench.new_request(C, key=b"k") for _ in range(2)]
    outcomes = await bench.flush(bench.turn(first, sends=sends[:1]), bench.turn(second, sends=sends[1:]))
    assert all(isinstance(outcome, Applied) for outcome in outcomes)
    assert await bench.one("SELECT count(*) FROM outbox WHERE key_digest = 'k'") == 1


async def test_a_locked_row_fails_its_own_turn_only(bench: Bench, postgres_url: str) -> None:
    requests = await bench.accept(A, B, C)
    assert await bench.flush(*map(bench.turn, requests)) == [Applied([])] * 3
    again = await bench.accept(A, B, C)
    async with (
        await connect(postgres_url, schema="entityq", application_name="tests") as other,
        other.transaction(),
    ):
        await other.execute("SELECT 1 FROM entity WHERE entity_id = 'b' FOR UPDATE")
        outcomes = await bench.flush(*(bench.turn(request, version=1) for request in again))
    assert outcomes[0] == outcomes[2] == Applied([])
    assert isinstance(outcomes[1], psycopg.errors.LockNotAvailable)
    # Three, two halves of them, two halves again: alone it is not tried once more, the lock has had its time.
    assert bench.statements == 1 + 5
    assert await bench.state(B) == (1, b"state")
    assert await bench.reply(again[1]) is None


async def test_a_state_changed_between_the_snapshot_and_the_write_is_not_half_applied(
    bench: Bench, postgres_url: str
) -> None:
    """The update waits for a writer, finds another version, and the whole turn is undone."""
    (first,) = await bench.accept(A)
    await bench.flush(bench.turn(first))
    (second,) = await bench.accept(A)
    await bench.connection.execute("SET lock_timeout = '5s'")
    async with await connect(postgres_url, schema="entityq", application_name="tests") as other:
        await other.execute("BEGIN")
        await other.execute("UPDATE entity SET version = 7 WHERE entity_id = 'a'")
        flushing = bench.flush(bench.turn(second, version=1, state=b"lost"))
        outcome = await finish_when_blocked(other, flushing)
    assert isinstance(outcome[0], NotApplied)
    assert await bench.state(A) == (7, b"state")
    assert await bench.reply(second) is None
    assert await bench.one("SELECT count(*) FROM pending") == 1


async def finish_when_blocked(blocker: Connection, flushing: Coroutine[Any, Any, T]) -> T:
    """Starts `flushing`, and ends the blocker's transaction once that waits for it."""
    task = asyncio.create_task(flushing)

    async def blocked() -> bool:
        found = await blocker.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        )
        return await found.fetchone() is not None

    await eventually_async(blocked, what="the commit's wait for the row")
    await blocker.execute("COMMIT")
    return await task


async def test_forgetting_removes_state_requests_and_keys(bench: Bench) -> None:
    first, other = await bench.accept(A, B)
    await bench.flush(bench.turn(first), bench.turn(other))
    (forget,) = await bench.accept(A)
    assert await bench.flush(bench.turn(forget, version=1, state=None, forget=True)) == [Applied([])]
    assert await bench.state(A) is None
    assert await bench.state(B) == (1, b"state")
    assert await bench.reply(first) is None
    assert await bench.reply(forget) is not None


async def test_a_turn_whose_request_is_cancelled_at_the_same_moment_is_applied(
    bench: Bench, postgres_url: str
) -> None:
    """The cancel came second: the reply of the turn stands."""
    (request,) = await bench.accept(A)
    await bench.connection.execute(b"SET lock_timeout = '10s'")
    async with await connect(postgres_url, schema="entityq", application_name="tests") as other:
        async with other.transaction():
            await other.execute(b"UPDATE pending SET cancelled = true")
            flushing = asyncio.create_task(bench.flush(bench.turn(request)))

            async def waits() -> bool:
                pid = bench.connection.info.backend_pid
                cursor = await other.execute(b"SELECT cardinality(pg_blocking_pids(%s)) > 0", [pid])
                return await cursor.fetchone() == (True,)

            await eventually_async(waits, 10.0, "the commit waits for the cancel")
        assert await flushing == [Applied([])]
    assert await bench.state(A) == (1, b"state")
    assert await bench.one("SELECT count(*) FROM pending") == 0
