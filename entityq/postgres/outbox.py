"""The sending half of the outbox: requests go in, conflicts, replies and the state of things come out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from entityq.address import Address, entity_hash, signed64
from entityq.postgres.channels import TOLD_OF_TIMERS_WITHIN, channel_of, timers_channel
from entityq.postgres.connect import Connection
from entityq.postgres.queries import load
from entityq.reply import EXPIRED

_SQL = load("outbox.sql")
_INSERT_REQUESTS, _READ_CONFLICTS = _SQL["insert_requests"], _SQL["read_conflicts"]
_READ_REPLIES, _ENTITY_STATUS = _SQL["read_replies"], _SQL["entity_status"]
_CLOSED_GROUPS = _SQL["closed_groups"]
_ESTIMATE_PENDING, _COUNT_PENDING = _SQL["estimate_pending"], _SQL["count_pending"]
_BEGIN, _COMMIT, _ROLLBACK = _SQL["begin"], _SQL["commit"], _SQL["rollback"]
_NOTIFY, _SET_LOCK_TIMEOUT = _SQL["notify_unpublished"], _SQL["set_lock_timeout"]

# Seconds, beyond what a statement waits for locks.
STATEMENT_TIMEOUT = 15.0

# Of Postgres: about the longest payload of a notification.
_PAYLOAD_SHARDS = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class NewRequest:
    """One request on its way into the outbox; `envelope` is encoded.

    It is not to be run before `due_at` (in UTC), or before `delay` seconds after its insert: at most one of them.
    """

    request_id: int
    address: Address
    message: str
    key_digest: bytes | None
    payload_hash: bytes
    envelope: bytes
    due_at: datetime | None = None
    delay: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it may not be due when it is stored."""
        return self.due_at is not None or self.delay is not None


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the outbox has put a request; `timed`: it is not due yet, and goes to no stream."""

    shard_id: int
    seq: int
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """A request that the outbox had before; `reply` None: unanswered."""

    request_id: int
    shard_id: int
    seq: int
    address: Address
    message: str
    key_digest: bytes | None
    payload_hash: bytes
    reply: bytes | None

    @property
    def expired(self) -> bool:
        """Whether it was answered, and only its key is kept."""
        return self.reply == EXPIRED


@dataclass(frozen=True, slots=True)
class StoredStatus:
    """`outcome` is that of the entity's last turn, None when nothing was committed.

    `closed` is the entity's group while `entityq reshard` has closed it: the rest is then not known. `waiting` is the
    request that waits for a signal, and `signal` its name.
    """

    outcome: int | None
    updated_at: datetime | None
    processing: bool
    closed: str | None = None
    waiting: int | None = None
    signal: str | None = None


async def insert_requests(
    connection: Connection, namespace: str, requests: Sequence[NewRequest]
) -> dict[int, Stored]:
    """One statement for all, numbered in their order. By request id.

    Who is missing met a conflict, or its group is closed, or nobody has registered its type.
    """
    cursor = await connection.execute(
        _INSERT_REQUESTS,
        {
            "namespace": namespace,
            "request_ids": [request.request_id for request in requests],
            "types": [request.address.type for request in requests],
            "entity_ids": [request.address.id for request in requests],
            "entity_hashes": [signed64(entity_hash(request.address.id)) for request in requests],
            "messages": [request.message for request in requests],
            "key_digests": [request.key_digest for request in requests],
            "payload_hashes": [request.payload_hash for request in requests],
            "envelopes": [request.envelope for request in requests],
            **times_of(requests),
            "timers_channel": timers_channel(namespace),
            "told_within": TOLD_OF_TIMERS_WITHIN,
        },
    )
    # The rows without an id are those of notifications.
    return {row[0]: Stored(*row[1:]) for row in await cursor.fetchall() if row[0] is not None}


def times_of(requests: Sequence[NewRequest]) -> dict[str, list[Any]]:
    """Empty lists where no request has a time."""
    if not any(request.waits for request in requests):
        return {"due_ats": [], "delays": []}
    return {
        "due_ats": [request.due_at for request in requests],
        "delays": [request.delay for request in requests],
    }


async def read_conflicts(connection: Connection, requests: Sequence[NewRequest]) -> list[Known]:
    """What the outbox has under the request ids or the primary keys of these."""
    cursor = await connection.execute(
        _READ_CONFLICTS,
        {
            "request_ids": [request.request_id for request in requests],
            "key_digests": [request.key_digest for request in requests if request.key_digest],
        },
    )
    return [_known(row) for row in await cursor.fetchall()]


async def closed_groups(
    connection: Connection, namespace: str, requests: Sequence[NewRequest]
) -> dict[str, str]:
    """Of the types of these requests, those whose shard group takes none now, with the group's name."""
    types = sorted({request.address.type for request in requests})
    cursor = await connection.execute(_CLOSED_GROUPS, {"namespace": namespace, "types": types})
    return dict(await cursor.fetchall())


async def read_replies(connection: Connection, request_ids: Sequence[int]) -> dict[int, bytes | None]:
    """By request id: None is unanswered; what the outbox does not have is not in it."""
    cursor = await connection.execute(_READ_REPLIES, {"request_ids": list(request_ids)})
    return dict(await cursor.fetchall())


async def read_status(connection: Connection, namespace: str, address: Address) -> StoredStatus:
    cursor = await connection.execute(
        _ENTITY_STATUS,
        {
            "namespace": namespace,
            "type": address.type,
            "entity_id": address.id,
            "entity_hash": signed64(entity_hash(address.id)),
        },
    )
    row = await cursor.fetchone()
    return StoredStatus(None, None, False) if row is None else StoredStatus(*row)


async def estimate_pending(connection: Connection) -> int:
    """Unanswered requests of all namespaces of the schema: cheap, and up to a second or so late."""
    return await _number(connection, _ESTIMATE_PENDING, {})


async def count_pending(connection: Connection, namespace: str, group: str, at_most: int) -> int:
    """Unanswered requests of a shard group; the count stops at `at_most`."""
    values = {"namespace": namespace, "shard_group": group, "at_most": at_most}
    return await _number(connection, _COUNT_PENDING, values)


async def begin(connection: Connection) -> None:
    """A transaction of several statements; `Connection.transaction` would roll back what was cancelled, without
    a deadline."""
    await connection.execute(_BEGIN, prepare=False)


async def commit(connection: Connection) -> None:
    await connection.execute(_COMMIT, prepare=False)


async def rollback(connection: Connection) -> None:
    await connection.execute(_ROLLBACK, prepare=False)


async def set_lock_timeout(connection: Connection, seconds: float) -> None:
    """For the rest of the session; at least 1 ms, because 0 would be no timeout."""
    values = {
        "lock_timeout": f"{max(1, int(seconds * 1000))}ms",
        # It counts the time that a statement waits for a lock, too.
        "statement_timeout": f"{int((seconds + STATEMENT_TIMEOUT) * 1000)}ms",
    }
    await connection.execute(_SET_LOCK_TIMEOUT, values)


def unpublished_channel(namespace: str) -> str:
    """Where runners are told, by NOTIFY, which shards have requests that no stream has.

    Frozen: `entityq_<namespace>`, or, where that is longer than Postgres allows, a BLAKE2b-128 of it.
    """
    return channel_of(namespace)


async def notify_unpublished(connection: Connection, namespace: str, shard_ids: Iterable[int]) -> None:
    """The payload is the shard ids, in decimal, with commas between them."""
    ordered = sorted(shard_ids)
    channel = unpublished_channel(namespace)
    for start in range(0, len(ordered), _PAYLOAD_SHARDS):
        payload = ",".join(map(str, ordered[start : start + _PAYLOAD_SHARDS]))
        await connection.execute(_NOTIFY, {"channel": channel, "payload": payload})


def parse_unpublished(payload: str) -> list[int]:
    """The shard ids of a notification. Raises ValueError for what is none."""
    return [int(shard_id) for shard_id in payload.split(",")]


def _known(row: tuple[Any, ...]) -> Known:
    request_id, shard_id, seq, type_, entity_id, *others = row
    return Known(request_id, shard_id, seq, Address(type_, entity_id), *others)


async def _number(connection: Connection, query: bytes, values: Mapping[str, Any]) -> int:
    row = await (await connection.execute(query, values)).fetchone()
    return 0 if row is None else int(row[0])
