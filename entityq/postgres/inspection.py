"""All that the database knows about one entity, or about one request.

Read-only, on any connection; the statements follow each other, so that what changes in between can be in one and not
in another. Every function raises psycopg.Error where the connection fails.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from entityq.address import Address, Shard, entity_hash, lock_class, signed64
from entityq.postgres.connect import Connection
from entityq.postgres.membership import unsigned
from entityq.postgres.queries import load
from entityq.reply import EXPIRED, Outcome, Reply, decode_reply
from entityq.status import State
from entityq.stored_state import StoredState

_SQL = load("inspection.sql")

LAST_REQUESTS = 10
TIMERS = 10


@dataclass(frozen=True, slots=True)
class Owner:
    """The runner whose session holds the shard's lock now."""

    incarnation: int
    name: str


@dataclass(frozen=True, slots=True)
class LastRequest:
    """`outcome` is None while it is unanswered, and when its reply is no longer kept (`replied_at` is there)."""

    request_id: int
    message: str
    created_at: datetime
    replied_at: datetime | None
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Timer:
    """`suspended`: it waits for a signal, until `due_at` at most; None: for as long as it takes."""

    request_id: int
    message: str
    due_at: datetime | None
    suspended: bool


@dataclass(frozen=True, slots=True)
class InspectedEntity:
    """`epoch` is that of the shard's lease; `waiting` counts its accepted requests whose time has come.

    `state` is None when nothing was committed; `outcome` is that of its last turn. While its group is not `open`,
    it may be in another shard.
    """

    address: Address
    shard: Shard
    open: bool
    owner: Owner | None
    epoch: int
    acquired_at: datetime | None
    state: StoredState | None
    outcome: Outcome | None
    updated_at: datetime | None
    waiting: int
    suspended: int
    signals: tuple[str, ...]
    timers: tuple[Timer, ...]
    dead_letters: int
    last: tuple[LastRequest, ...]

    @property
    def status(self) -> State:
        if self.suspended:
            return "suspended"
        if self.waiting:
            return "processing"
        if self.outcome is None:
            return "idle"
        return "complete" if self.outcome is Outcome.SUCCESS else "failed"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Not `requeued_at`: nobody has handled it."""

    died_at: datetime
    attempts: int
    error_type: str
    error: str
    requeued_at: datetime | None
    requeued_by: str | None


@dataclass(frozen=True, slots=True)
class Signal:
    """`waiting`: a turn has asked for it."""

    name: str
    waiting: bool
    signalled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """`attempts`: turns that ended their process; `retries`: those that ended in a defect; `failing_since`: when the
    first of these began; `resume_at`: not to be run before. `timed`: it is in no mailbox until `due_at`."""

    attempts: int
    retries: int
    failing_since: datetime | None
    resume_at: datetime | None
    suspended: bool
    cancelled: bool
    due_at: datetime | None
    timed: bool

    @property
    def state(self) -> str:
        if self.cancelled:
            return "being cancelled"
        if self.suspended:
            return "suspended"
        if self.retries and (self.resume_at or self.timed):
            return "waiting to be retried"
        return "waiting for its time" if self.timed else "pending"


@dataclass(frozen=True, slots=True)
class InspectedRequest:
    """`unanswered` is None once it is answered; then `reply` is None where it is no longer kept.

    `envelope` is empty then. `owner` is that of its shard now; `epoch` that of the lease under which it was answered.
    """

    request_id: int
    address: Address
    message: str
    shard: Shard
    owner: Owner | None
    seq: int
    created_at: datetime
    envelope: bytes
    reply: Reply | None
    replied_at: datetime | None
    epoch: int | None
    unanswered: Unanswered | None
    dead_letters: tuple[DeadLetter, ...]
    signals: tuple[Signal, ...]

    @property
    def state(self) -> str:
        if self.unanswered is not None:
            return self.unanswered.state
        return "answered" if self.reply is not None else "answered, and its reply is no longer kept"


async def inspect_entity(
    connection: Connection, schema: str, namespace: str, address: Address
) -> InspectedEntity | None:
    """None where the namespace does not have its type."""
    where: dict[str, object] = {
        "namespace": namespace,
        "type": address.type,
        "entity_id": address.id,
        "entity_hash": signed64(entity_hash(address.id)),
    }
    place = await _row(connection, "read_place", where)
    if place is None:
        return None
    group, number, shard_id, is_open, epoch, acquired_at = place
    where["shard_id"] = shard_id
    stored = await _row(connection, "read_entity", where)
    ((waiting, suspended),) = await _rows(connection, "count_waiting", where)
    ((dead_letters,),) = await _rows(connection, "count_dead_letters_of_entity", where)
    shard = Shard(group, number)
    return InspectedEntity(
        address=address,
        shard=shard,
        open=is_open,
        owner=await _owner(connection, schema, namespace, shard),
        epoch=epoch or 0,
        acquired_at=acquired_at,
        state=None if stored is None else StoredState(stored[0], stored[3], stored[1]),
        outcome=None if stored is None else Outcome(stored[2]),
        updated_at=None if stored is None else stored[4],
        waiting=waiting,
        suspended=suspended,
        signals=tuple(name for (name,) in await _rows(connection, "read_signals_waited_for", where)),
        timers=tuple(
            Timer(*row) for row in await _rows(connection, "read_timers", {**where, "at_most": TIMERS})
        ),
        dead_letters=dead_letters,
        last=tuple(
            LastRequest(request_id, message, created_at, replied_at, _outcome(request_id, reply))
            for request_id, message, created_at, replied_at, reply in await _rows(
                connection, "read_last_requests", {**where, "at_most": LAST_REQUESTS}
            )
        ),
    )


async def inspect_request(
    connection: Connection, schema: str, namespace: str, request_id: int
) -> InspectedRequest | None:
    """None when the namespace has no such request, or no longer."""
    where = {"namespace": namespace, "request_id": request_id}
    row = await _row(connection, "read_request", where)
    if row is None:
        return None
    type_, entity_id, message, group, number, seq, created_at, envelope, reply, replied_at, epoch, *life = row
    shard = Shard(group, number)
    return InspectedRequest(
        request_id=request_id,
        address=Address(type_, entity_id),
        message=message,
        shard=shard,
        owner=await _owner(connection, schema, namespace, shard),
        seq=seq,
        created_at=created_at,
        envelope=envelope,
        reply=decode_reply(request_id, reply) if reply else None,
        replied_at=replied_at,
        epoch=epoch,
        unanswered=Unanswered(*life) if reply is None else None,
        dead_letters=tuple(
            DeadLetter(*letter) for letter in await _rows(connection, "read_dead_letters", where)
        ),
        signals=tuple(Signal(*signal) for signal in await _rows(connection, "read_signals", where)),
    )


def _outcome(request_id: int, reply: bytes | None) -> Outcome | None:
    return None if reply is None or reply == EXPIRED else decode_reply(request_id, reply).outcome


async def _owner(connection: Connection, schema: str, namespace: str, shard: Shard) -> Owner | None:
    class_ = unsigned(lock_class(schema, namespace, "shard", shard.group))
    where = {"namespace": namespace, "unsigned_class": class_, "number": shard.number}
    row = await _row(connection, "read_owner", where)
    return None if row is None else Owner(*row)


async def _row(connection: Connection, name: str, where: Mapping[str, object]) -> tuple[Any, ...] | None:
    return await (await connection.execute(_SQL[name], where)).fetchone()


async def _rows(connection: Connection, name: str, where: Mapping[str, object]) -> list[tuple[Any, ...]]:
    return await (await connection.execute(_SQL[name], where)).fetchall()
