"""The statement that fires timers, and where inserts put what is not due."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entityq.address import Address
from entityq.postgres import timers
from entityq.postgres.channels import parse_timer, timers_channel
from entityq.postgres.connect import Connection, connect
from entityq.postgres.facts import Facts, register_types
from entityq.postgres.outbox import NewRequest, Stored, insert_requests
from entityq.postgres.timers import Fired, fire_timers

FAR = 3600.0


@dataclass
class Rows:
    """A cluster's tables, and their owner's session."""

    connection: Connection
    namespace: str
    facts: Facts
    sent: int = 0

    async def execute(
        self, query: bytes, parameters: Mapping[str, object] | None = None
    ) -> Sequence[tuple[Any, ...]]:
        """As a lease session does."""
        async with self.connection.cursor(binary=True) as cursor:
            await cursor.execute(query, parameters)
            return await cursor.fetchall() if cursor.description else []

    def new(self, entity_id: str = "a", envelope: bytes = b"e", **timing: Any) -> NewRequest:
        self.sent += 1
        digest = timing.pop("digest", None)
        return NewRequest(self.sent, Address("Account", entity_id), "m", digest, b"hash", envelope, **timing)

    async def insert(self, *requests: NewRequest) -> dict[int, Stored]:
        return await insert_requests(self.connection, self.namespace, requests)

    async def make_due(self, *request_ids: int) -> None:
        """One second ago, all at the same time."""
        await self.execute(
            b"UPDATE timer SET due_at = now() - interval '1 second' WHERE request_id = ANY (%(ids)s)",
            {"ids": list(request_ids)},
        )

    async def fire(self, most: int = 500) -> Fired:
        group = self.facts.groups["default"]
        shards = list(range(group.first_shard, group.first_shard + group.shards))
        return await fire_timers(self, shards, most)

    async def ids(self, table: str) -> list[int]:
        return [row[0] for row in await self.execute(f"SELECT request_id FROM {table} ORDER BY 1".encode())]


def fired_ids(fired: Fired) -> list[int]:
    return [row.request_id for rows in fired.rows.values() for row in rows]


@pytest.fixture
async def rows(postgres_url: str, namespace: str) -> AsyncIterator[Rows]:
    async with await connect(postgres_url, schema="entityq") as connection:
        facts = await register_types(connection, namespace, {"Account": "default"})
        yield Rows(connection, namespace, facts)


# ----- inserts


async def test_what_is_not_due_is_no_pending_request(rows: Rows) -> None:
    now = datetime.now(UTC)
    requests = [
        rows.new(),
        rows.new(delay=FAR),
        rows.new(due_at=now + timedelta(hours=1)),
        rows.new(due_at=now - timedelta(hours=1)),
        rows.new(delay=0.0),
        rows.new(),
    ]
    stored = await rows.insert(*requests)
    assert [stored[each.request_id].timed for each in requests] == [False, True, True, False, False, False]
    assert (await rows.ids("timer"), await rows.ids("pending")) == ([2, 3], [1, 4, 5, 6])
    # All have a place in the order of sending.
    seqs = [stored[each.request_id].seq for each in requests]
    assert seqs == sorted(seqs)


async def test_a_delay_is_counted_by_the_database(rows: Rows) -> None:
    await rows.insert(rows.new(delay=90.0))
    ((left,),) = await rows.execute(b"SELECT extract(epoch FROM due_at - now())::float8 FROM timer")
    assert 80 < left <= 90


async def test_only_what_is_due_soon_is_told_once_for_each_shard(rows: Rows, postgres_url: str) -> None:
    async with await connect(postgres_url, schema="entityq") as listening:
        await listening.execute(f'LISTEN "{timers_channel(rows.namespace)}"'.encode())
        await rows.insert(rows.new(delay=FAR), rows.new())
        stored = await rows.insert(*[rows.new(delay=delay) for delay in (5.0, 3.0, 4.0, FAR)])
        told = [parse_timer(each.payload) async for each in listening.notifies(timeout=5.0, stop_after=1)]
        ((soonest,),) = await rows.execute(b"SELECT extract(epoch FROM min(due_at))::float8 FROM timer")
        ((shard_id, due),) = told
        assert shard_id == stored[4].shard_id
        assert due == pytest.approx(soonest, abs=0.002)
        assert [each async for each in listening.notifies(timeout=0.05)] == []


def test_what_a_notification_says() -> None:
    assert timers_channel("bank") == "entityq_timers:bank"
    assert len(timers_channel("n" * 63)) <= 63
    assert parse_timer("7:1896091200123") == (7, 1_896_091_200.123)
    for payload in ("", "7", "7:", "7:x", "7:1:2"):
        with pytest.raises(ValueError):
            parse_timer(payload)


# ----- firing


async def test_what_is_due_becomes_pending_with_a_new_seq(rows: Rows) -> None:
    stored = await rows.insert(rows.new(delay=FAR, envelope=b"one"), rows.new(delay=FAR), rows.new())
    await rows.execute(
        b"UPDATE timer SET attempts = 1, retries = 2, failing_since = now() - interval '1 minute', suspended = true"
        b" WHERE request_id = 1"
    )
    await rows.make_due(1)
    fired = await rows.fire()
    ((row,),) = fired.rows.values()
    assert (row.request_id, row.envelope, row.address) == (1, b"one", Address("Account", "a"))
    assert (row.attempts, row.retries, row.wait) == (1, 2, 0.0)
    assert row.failing == pytest.approx(60, abs=10)
    assert row.seq > stored[3].seq
    columns = (
        b"SELECT p.seq, o.seq, p.attempts, p.retries, p.suspended, p.failing_since < now() FROM pending p"
    )
    found = await rows.execute(columns + b" JOIN outbox o USING (request_id) WHERE request_id = 1")
    assert found == [(row.seq, row.seq, 1, 2, True, True)]
    assert await rows.ids("timer") == [2]
    assert fired_ids(await rows.fire()) == []


async def test_the_answer_says_when_to_look_again(rows: Rows) -> None:
    empty = await rows.fire()
    assert (empty.rows, empty.next, empty.more) == ({}, None, False)
    await rows.insert(rows.new(delay=FAR), rows.new("b", delay=2 * FAR))
    await rows.execute(b"UPDATE timer SET due_at = 'infinity' WHERE request_id = 2")
    fired = await rows.fire()
    assert fired.next is not None
    assert fired.next - fired.now == pytest.approx(FAR, abs=10)
    await rows.make_due(1)
    fired = await rows.fire()
    assert (fired_ids(fired), fired.next, fired.more) == ([1], None, False)


async def test_at_the_same_time_the_order_is_that_of_sending(rows: Rows) -> None:
    """Whatever their ids and keys are."""
    requests = [
        replace(rows.new(delay=FAR, digest=bytes([number * 7 % 11])), request_id=100 - number)
        for number in range(10)
    ]
    await rows.insert(*requests)
    await rows.make_due(*range(91, 101))
    assert fired_ids(await rows.fire()) == [request.request_id for request in requests]


async def test_the_earlier_time_comes_first(rows: Rows) -> None:
    await rows.insert(*[rows.new(delay=FAR) for _ in range(3)])
    await rows.execute(b"UPDATE timer SET due_at = now() - request_id * interval '1 second'")
    assert fired_ids(await rows.fire()) == [3, 2, 1]


async def test_one_statement_is_bounded_in_rows(rows: Rows) -> None:
    names = [str(number) for number in range(40)]
    await rows.insert(*[rows.new(name, delay=FAR) for name in names])
    await rows.make_due(*range(1, 41))
    found: list[int] = []
    for _ in range(40):
        fired = await rows.fire(most=6)
        assert len(fired_ids(fired)) <= 6
        found += fired_ids(fired)
        if not fired.more:
            break
    assert sorted(found) == list(range(1, 41))


async def test_one_statement_is_bounded_in_bytes(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "MOST_BYTES", 2_500)
    await rows.insert(*[rows.new(delay=FAR, envelope=bytes(1_000)) for _ in range(5)])
    await rows.make_due(*range(1, 6))
    pages = [await rows.fire() for _ in range(3)]
    assert [len(fired_ids(fired)) for fired in pages] == [3, 2, 0]
    assert [fired.more for fired in pages] == [True, False, False]


async def test_a_locked_timer_keeps_nobody_else_waiting(rows: Rows, postgres_url: str) -> None:
    await rows.insert(*[rows.new(delay=FAR) for _ in range(3)])
    await rows.make_due(1, 2, 3)
    async with await connect(postgres_url, schema="entityq") as other:
        await other.execute(b"BEGIN")
        await other.execute(b"SELECT 1 FROM timer WHERE request_id = 2 FOR UPDATE")
        fired = await rows.fire()
        assert (fired_ids(fired), fired.more) == ([1, 3], True)
        await other.execute(b"ROLLBACK")
    assert fired_ids(await rows.fire()) == [2]


async def test_a_timer_of_an_answered_request_goes(rows: Rows) -> None:
    await rows.insert(rows.new(delay=FAR), rows.new(delay=FAR))
    await rows.make_due(1, 2)
    await rows.execute(b"UPDATE outbox SET reply = 'r' WHERE request_id = 1")
    await rows.execute(b"DELETE FROM outbox WHERE request_id = 2")
    fired = await rows.fire()
    assert (fired.rows, fired.more) == ({}, False)
    assert (await rows.ids("timer"), await rows.ids("pending")) == ([], [])


async def test_other_shards_keep_theirs(rows: Rows) -> None:
    stored = await rows.insert(rows.new("a", delay=FAR), rows.new("b", delay=FAR))
    await rows.make_due(1, 2)
    assert stored[1].shard_id != stored[2].shard_id
    fired = await fire_timers(rows, [stored[2].shard_id])
    assert (fired_ids(fired), fired.more, fired.next) == ([2], False, None)
    assert await rows.ids("timer") == [1]
