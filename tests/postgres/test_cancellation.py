"""The statements of a cancel, against everybody who has the request at the same moment."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from entityq.address import Address
from entityq.cancel_outcome import CancelOutcome
from entityq.codec import Limits
from entityq.errors import EntityQError, Interrupted, PersistenceError
from entityq.postgres.cancellation import cancel_request, cancels_channel, parse_cancel
from entityq.postgres.connect import Connection, connect
from entityq.postgres.facts import register_types
from entityq.postgres.outbox import NewRequest, Stored, insert_requests, read_replies
from entityq.replies import defect_reply
from entityq.reply import EXPIRED, Outcome, Reply, decode_reply

ID = 7
DONE = Reply(ID, Outcome.SUCCESS, "", b"1").encode()


@dataclass
class Scene:
    """One request of a cluster; `other` is somebody else's session."""

    connection: Connection
    other: Connection
    namespace: str
    stored: Stored

    async def cancel(self) -> CancelOutcome:
        return await cancel_request(self.connection, self.namespace, ID)

    async def do(self, statement: str, *values: object) -> list[Any]:
        cursor = await self.other.execute(statement.encode(), values)
        return [row[0] for row in await cursor.fetchall()] if cursor.description else []

    async def set_timer(self) -> None:
        await self.do(
            "WITH moved AS (DELETE FROM pending RETURNING shard_id, request_id, entity_hash)"
            " INSERT INTO timer (shard_id, due_at, request_id, entity_hash)"
            " SELECT shard_id, now() + interval '1 day', request_id, entity_hash FROM moved"
        )

    async def fire_timer(self) -> None:
        await self.do(
            "WITH fired AS (DELETE FROM timer RETURNING shard_id, request_id, entity_hash),"
            " numbered AS MATERIALIZED (SELECT nextval('outbox_seq') AS seq, * FROM fired),"
            " queued AS (INSERT INTO pending (shard_id, seq, request_id, entity_hash)"
            " SELECT shard_id, seq, request_id, entity_hash FROM numbered)"
            " UPDATE outbox o SET seq = numbered.seq FROM numbered WHERE o.request_id = numbered.request_id"
        )

    async def answer(self, reply: bytes = DONE) -> None:
        await self.do(
            "WITH done AS (DELETE FROM pending) UPDATE outbox SET reply = %s, replied_at = now()", reply
        )

    async def reply(self) -> bytes | None:
        return (await read_replies(self.connection, [ID]))[ID]


@pytest.fixture
async def scene(postgres_url: str, namespace: str) -> AsyncIterator[Scene]:
    async with (
        await connect(postgres_url, schema="entityq") as connection,
        await connect(postgres_url, schema="entityq") as other,
    ):
        await register_types(connection, namespace, {"Account": "default"})
        request = NewRequest(ID, Address("Account", "a"), "m", None, b"hash", b"envelope")
        stored = await insert_requests(connection, namespace, [request])
        yield Scene(connection, other, namespace, stored[ID])


async def test_a_pending_request_is_marked_and_its_owner_told(scene: Scene) -> None:
    await scene.do(f'LISTEN "{cancels_channel(scene.namespace)}"')
    assert await scene.cancel() is CancelOutcome.REQUESTED
    assert await scene.do("SELECT cancelled FROM pending") == [True]
    (told,) = [notify async for notify in scene.other.notifies(timeout=5, stop_after=1)]
    assert parse_cancel(told.payload) == (scene.stored.shard_id, scene.stored.seq)
    assert await scene.reply() is None


async def test_nobody_is_told_of_what_is_answered(scene: Scene) -> None:
    await scene.answer()
    await scene.do(f'LISTEN "{cancels_channel(scene.namespace)}"')
    assert await scene.cancel() is CancelOutcome.ANSWERED
    # What is told comes in order: anything before this one would be first.
    await scene.do("SELECT pg_notify(%s, 'end')::text", cancels_channel(scene.namespace))
    (told,) = [notify async for notify in scene.other.notifies(timeout=5, stop_after=1)]
    assert told.payload == "end"
    assert await scene.reply() == DONE


async def test_the_outcome_says_what_is_stored(scene: Scene) -> None:
    interrupted = defect_reply(ID, Interrupted, "cancelled", Limits()).encode()
    for reply, outcome in (
        (interrupted, CancelOutcome.CANCELLED),
        (EXPIRED, CancelOutcome.ANSWERED),
        (DONE, CancelOutcome.ANSWERED),
    ):
        await scene.answer(reply)
        assert await scene.cancel() is outcome
        assert await scene.reply() == reply


async def test_a_request_whose_time_has_not_come_is_answered_at_once(scene: Scene) -> None:
    await scene.set_timer()
    assert await scene.cancel() is CancelOutcome.CANCELLED
    stored = await scene.reply()
    assert stored is not None
    assert decode_reply(ID, stored).outcome is Outcome.INTERRUPTED
    assert await scene.do("SELECT count(*) FROM timer") == [0]
    assert await scene.cancel() is CancelOutcome.CANCELLED


async def test_other_namespaces_are_out_of_reach(scene: Scene) -> None:
    with pytest.raises(EntityQError, match="There is no request 7 in the namespace other"):
        await cancel_request(scene.connection, "other", ID)
    assert await scene.do("SELECT cancelled FROM pending") == [False]


async def cancel_during(scene: Scene) -> CancelOutcome:
    """While the other's transaction holds the row; it commits when the cancel waits for it."""
    cancelling = asyncio.create_task(scene.cancel())
    pid = scene.connection.info.backend_pid
    blocked: list[object] = []
    for _ in range(1_000):
        blocked = await scene.do("SELECT cardinality(pg_blocking_pids(%s)) > 0", pid)
        if blocked == [True] or cancelling.done():
            break
    assert blocked == [True]
    await scene.do("COMMIT")
    return await cancelling


async def test_a_commit_that_comes_first_wins(scene: Scene) -> None:
    await scene.do("BEGIN")
    await scene.answer()
    assert await cancel_during(scene) is CancelOutcome.ANSWERED
    assert await scene.reply() == DONE


async def test_an_owner_that_fires_the_timer_first_gets_the_mark(scene: Scene) -> None:
    await scene.set_timer()
    await scene.do("BEGIN")
    await scene.fire_timer()
    assert await cancel_during(scene) is CancelOutcome.REQUESTED
    assert await scene.do("SELECT cancelled FROM pending") == [True]
    assert await scene.reply() is None


async def test_a_request_that_is_parked_first_is_answered(scene: Scene) -> None:
    await scene.do("BEGIN")
    await scene.set_timer()
    assert await cancel_during(scene) is CancelOutcome.CANCELLED
    assert await scene.do("SELECT count(*) FROM timer") == [0]


async def test_a_row_that_is_held_for_long_is_an_error_and_not_a_wait(scene: Scene) -> None:
    await scene.do("BEGIN")
    await scene.do("SELECT 1 FROM pending FOR UPDATE")
    with pytest.raises(PersistenceError, match="Request 7 was not cancelled: somebody else holds it"):
        await scene.cancel()
    await scene.do("ROLLBACK")
    assert await scene.do("SELECT cancelled FROM pending") == [False]


@pytest.mark.parametrize("payload", ["", "1", "1:x", "1:2:3"])
def test_what_is_no_cancel_is_refused(payload: str) -> None:
    with pytest.raises(ValueError):
        parse_cancel(payload)
