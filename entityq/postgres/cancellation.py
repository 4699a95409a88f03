"""Cancelling a request in the database: it is marked for its owner, or, where nobody runs it, answered at once."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from psycopg.errors import LockNotAvailable

from entityq.address import Address
from entityq.cancel_outcome import CancelOutcome
from entityq.codec import Limits
from entityq.errors import Accepted, EntityQError, Interrupted, PersistenceError
from entityq.postgres.connect import Connection
from entityq.postgres.queries import load
from entityq.replies import defect_reply
from entityq.reply import EXPIRED, Outcome, decode_reply

_SQL = load("cancellation.sql")
_REQUEST_CANCEL, _ANSWER_TIMED = _SQL["request_cancel"], _SQL["answer_timed"]

# A request that meets none of two statements has gone on between them.
_TRIES = 5
_REPLY = Limits(max_bytes=65_536)


@dataclass(frozen=True, slots=True)
class _Found:
    address: Address
    message: str
    reply: bytes | None
    marked: bool


async def cancel_request(connection: Connection, namespace: str, request_id: int) -> CancelOutcome:
    """Done again, it does no harm.

    Raises EntityQError for a request that the namespace does not have, PersistenceError for one that somebody else
    holds, psycopg.Error.
    """
    for _ in range(_TRIES):
        with suppress(LockNotAvailable):
            outcome = await _try(connection, namespace, request_id)
            if outcome is not None:
                return outcome
    raise PersistenceError(
        f"Request {request_id} was not cancelled: somebody else holds it, as `entityq reshard` does",
        accepted=Accepted.YES,
        request_id=request_id,
        advice="Try again.",
    )


async def _try(connection: Connection, namespace: str, request_id: int) -> CancelOutcome | None:
    """None when it has gone on meanwhile."""
    found = await _request_cancel(connection, namespace, request_id)
    if found is None:
        raise EntityQError(
            f"There is no request {request_id} in the namespace {namespace}, or it is no longer kept"
        )
    if found.reply is not None:
        return _answered(request_id, found.reply)
    if found.marked:
        return CancelOutcome.REQUESTED
    answered = await _answer_timed(connection, request_id, found)
    return CancelOutcome.CANCELLED if answered else None


async def _request_cancel(connection: Connection, namespace: str, request_id: int) -> _Found | None:
    values = {
        "request_id": request_id,
        "namespace": namespace,
        "channel": cancels_channel(namespace),
    }
    row: tuple[Any, ...] | None = await (await connection.execute(_REQUEST_CANCEL, values)).fetchone()
    if row is None:
        return None
    type_, entity_id, message, reply, marked, _ = row
    return _Found(Address(type_, entity_id), message, reply, marked)


async def _answer_timed(connection: Connection, request_id: int, found: _Found) -> bool:
    text = f"{found.message} to {found.address} was cancelled before it ran"
    reply = defect_reply(request_id, Interrupted, text, _REPLY)
    cursor = await connection.execute(_ANSWER_TIMED, {"request_id": request_id, "reply": reply.encode()})
    row = await cursor.fetchone()
    return row is not None and row[0] == 1


def _answered(request_id: int, reply: bytes) -> CancelOutcome:
    if reply != EXPIRED and decode_reply(request_id, reply).outcome is Outcome.INTERRUPTED:
        return CancelOutcome.CANCELLED
    return CancelOutcome.ANSWERED


def cancels_channel(namespace: str) -> str:
    """Where runners are told, by NOTIFY, of pending requests that were cancelled. Bounded, as Postgres wants it."""
    return f"entityq:cancels:{hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()}"


def parse_cancel(payload: str) -> tuple[int, int]:
    """The shard id and the seq: decimal, with a colon between them. Raises ValueError for what is none."""
    shard_id, seq = payload.split(":")
    return int(shard_id), int(seq)
