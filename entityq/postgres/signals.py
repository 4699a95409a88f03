"""Signals in the database: those who send one, and what a turn reads that waits for one."""

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import AsyncClientCursor

from entityq.address import Address
from entityq.errors import Accepted, PersistenceError
from entityq.postgres.channels import channel_of, timers_channel
from entityq.postgres.connect import Connection, Pool, pooled
from entityq.postgres.queries import load
from entityq.signal_outcome import SignalOutcome
from entityq.signal_token import SignalPlace

_SQL = load("signals.sql")
# One message with values in it (a ClientCursor's), since those with parameters have one statement each.
_SIGNAL = b";\n".join(_SQL[name] for name in ("hold_reshard", "store_signal", "wake", "read_signalled"))
_READ_SIGNALS, _HAS_WAITED = _SQL["read_signals"], _SQL["has_waited"]


@dataclass(frozen=True, slots=True)
class StoredSignal:
    """`ended` without a value: the wait for it has timed out."""

    value: bytes | None
    ended: bool


async def store_signal(
    connection: Connection, namespace: str, place: SignalPlace, value: bytes, *, again: bool = False
) -> SignalOutcome:
    """Stores the value, and wakes whoever waits for it, in one transaction.

    `again`: an earlier try may have succeeded, so that the same value is its own. Raises PersistenceError while a
    reshard has closed the group, psycopg.Error.
    """
    where = {"request_id": place.request_id, "name": place.name, "namespace": namespace}
    channels = {"signals_channel": signals_channel(namespace), "timers_channel": timers_channel(namespace)}
    async with AsyncClientCursor(connection) as cursor:
        await cursor.execute(_SIGNAL, {**where, **channels, "value": value})
        cursor.nextset()
        stored = await cursor.fetchone()
        cursor.nextset()
        cursor.nextset()
        row = await cursor.fetchone()
    if stored is not None:
        return SignalOutcome.SIGNALLED
    if row is None:
        return SignalOutcome.UNKNOWN
    answered, closed, first, ended = row
    if ended:
        if first is None:
            return SignalOutcome.TIMED_OUT
        return SignalOutcome.SIGNALLED if again and bytes(first) == value else SignalOutcome.ALREADY
    if answered:
        return SignalOutcome.ANSWERED
    raise PersistenceError(
        f"Request {place.request_id} was not signalled: "
        + (
            f"`entityq reshard` has closed the group {closed}"
            if closed
            else "it is on its way in the database"
        ),
        accepted=Accepted.NO,
        request_id=place.request_id,
        advice="Try again.",
    )


class SignalRows:
    """What turns read, on a pooled connection."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def read(self, request_id: int) -> Mapping[str, StoredSignal]:
        """The signals of a request, by name. Raises psycopg.Error."""
        async with pooled(self._pool) as connection:
            cursor = await connection.execute(_READ_SIGNALS, {"request_id": request_id})
            rows = await cursor.fetchall()
        return {
            name: StoredSignal(None if value is None else bytes(value), ended) for name, value, ended in rows
        }

    async def has_waited(self, request_id: int) -> bool:
        """Whether a turn of the request has waited for a signal: it has started, then. Raises psycopg.Error."""
        async with pooled(self._pool) as connection:
            cursor = await connection.execute(_HAS_WAITED, {"request_id": request_id})
            row = await cursor.fetchone()
        return row is not None and bool(row[0])


def signals_channel(namespace: str) -> str:
    """Where runners are told, by NOTIFY, of entities whose suspended request was signalled."""
    return channel_of(f"signals:{namespace}")


def parse_signalled(payload: str) -> tuple[int, Address]:
    """A shard id and an address: three lines. Raises ValueError, MalformedMessage for what is none."""
    shard_id, type_, entity_id = payload.split("\n")
    return int(shard_id), Address(type_, entity_id)
