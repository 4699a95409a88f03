"""What an operator does with requests that were given up: look at them, requeue them, discard them.

Every function raises psycopg.Error where the connection fails.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from entityq.address import Address
from entityq.dead_letter import DeadLetter, DeadLetterFilter, Handled
from entityq.postgres.connect import Connection
from entityq.postgres.outbox import notify_unpublished
from entityq.postgres.queries import load

_SQL = load("dead_letters.sql")
_LIST, _READ, _REQUEUE = _SQL["list_dead_letters"], _SQL["read_dead_letters"], _SQL["requeue"]
_DISCARD, _WHY_NOT = _SQL["discard"], _SQL["why_not"]

# Requests of one statement: it holds their locks.
AT_ONCE = 500


async def list_dead_letters(
    connection: Connection, namespace: str, wanted: DeadLetterFilter, *, most: int
) -> list[DeadLetter]:
    """Those that nobody has requeued, the newest first, without their causes."""
    values = {
        "namespace": namespace,
        "type": wanted.type,
        "since": wanted.since,
        "error": wanted.error,
        "most": most,
    }
    return [_dead_letter(row) for row in await _rows(connection, _LIST, values)]


async def read_dead_letters(connection: Connection, namespace: str, request_id: int) -> list[DeadLetter]:
    """All of one request, the newest first, with their causes."""
    values = {"namespace": namespace, "request_id": request_id}
    return [_dead_letter(row) for row in await _rows(connection, _READ, values)]


async def requeue(connection: Connection, namespace: str, request_ids: Iterable[int], *, by: str) -> Handled:
    """Their replies are taken back, they run again behind what their entities have now, and whoever asks waits.

    `by`: who did it, for the record.
    """
    done: set[int] = set()
    ids = list(dict.fromkeys(request_ids))
    for page in _pages(ids):
        values = {"namespace": namespace, "request_ids": page, "by": by}
        rows = await _rows(connection, _REQUEUE, values)
        await notify_unpublished(connection, namespace, {shard_id for _, shard_id in rows})
        done |= {request_id for request_id, _ in rows}
    return await _handled(connection, namespace, ids, done)


async def discard(connection: Connection, namespace: str, request_ids: Iterable[int]) -> Handled:
    """They are forgotten as dead letters; their replies stay what they are."""
    done: set[int] = set()
    ids = list(dict.fromkeys(request_ids))
    for page in _pages(ids):
        rows = await _rows(connection, _DISCARD, {"namespace": namespace, "request_ids": page})
        done |= {request_id for (request_id,) in rows}
    return await _handled(connection, namespace, ids, done)


async def _handled(connection: Connection, namespace: str, ids: Sequence[int], done: set[int]) -> Handled:
    left = [request_id for request_id in ids if request_id not in done]
    reasons = dict.fromkeys(left, "it is no dead letter")
    for page in _pages(left):
        values = {"namespace": namespace, "request_ids": page}
        for request_id, waits, kept, closed in await _rows(connection, _WHY_NOT, values):
            reasons[request_id] = _reason(waits=waits, kept=kept, closed=closed)
    return Handled(tuple(request_id for request_id in ids if request_id in done), reasons)


def _reason(*, waits: bool, kept: bool | None, closed: str | None) -> str:
    if not waits:
        return "it was requeued before"
    if closed is not None:
        return f"its shard group {closed} is closed while `entityq reshard` is under way"
    if not kept:
        return "the request itself is no longer kept"
    return "somebody else has it at this moment"


def _pages(ids: Sequence[int]) -> Iterable[list[int]]:
    left = iter(ids)
    while page := list(islice(left, AT_ONCE)):
        yield page


def _dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    request_id, died_at, type_, entity_id, message, attempts, error_type, error, *rest = row
    address = Address(type_, entity_id)
    return DeadLetter(request_id, died_at, address, message, attempts, error_type, error, *rest)


async def _rows(connection: Connection, query: bytes, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, values, prepare=False)).fetchall()
