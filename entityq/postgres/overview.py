"""What people ask about a cluster: its runners, its shard groups, one request.

Read-only, on any connection. Every function raises psycopg.Error where the connection fails.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from entityq.address import Address, Shard, lock_class
from entityq.postgres.connect import Connection, fetch_value
from entityq.postgres.membership import live_runners, unsigned
from entityq.postgres.queries import load
from entityq.reply import EXPIRED, Reply, decode_reply

_SQL = load("overview.sql")
_READ_JOINED, _READ_HELD, _READ_BACKLOG = _SQL["read_joined"], _SQL["read_held"], _SQL["read_backlog"]
_READ_NAMESPACES, _FIND_REQUEST = _SQL["read_namespaces"], _SQL["find_request"]
_READ_RESHARD, _COUNT_DEAD_LETTERS = _SQL["read_reshard"], _SQL["count_dead_letters"]


@dataclass(frozen=True, slots=True)
class RunnerOverview:
    """A live runner; `held` is how many shards it holds, by group."""

    incarnation: int
    name: str
    groups: tuple[str, ...]
    types: tuple[str, ...]
    held: dict[str, int]
    draining: bool
    joined_at: datetime | None
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class GroupOverview:
    """A shard group; `oldest` is the age of its oldest unanswered request in seconds, None without one; `timers`
    counts requests whose time has not come.

    Not `open`: a reshard has closed it, and `pending` and `oldest` leave out what it has moved already.
    """

    name: str
    shards: int
    open: bool
    held: int
    pending: int
    oldest: float | None
    timers: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a reshard is to do: give `group` so many `shards`, or move entity `type` to it."""

    group: str
    shards: int | None = None
    type: str | None = None

    def __str__(self) -> str:
        if self.type is None:
            return f"shard group {self.group} to {self.shards} shards"
        return f"entity type {self.type} to shard group {self.group}"

    @property
    def command(self) -> str:
        if self.type is None:
            return f"entityq reshard --group {self.group} --shards {self.shards}"
        return f"entityq reshard --type {self.type} --group {self.group}"


@dataclass(frozen=True, slots=True)
class Reshard:
    """One that is not finished, under way or interrupted. `phase`: "closing" or "moving"."""

    change: Change
    phase: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Stranger:
    """A session that holds shards and is no live runner: nobody serves them. `held` by group."""

    pid: int
    application: str
    held: dict[str, int]


@dataclass(frozen=True, slots=True)
class Overview:
    """`held` counts the shard locks of live runners and of anybody else alike: a group can have more of them
    than its runners together."""

    namespace: str
    runners: tuple[RunnerOverview, ...]
    groups: tuple[GroupOverview, ...]
    reshard: Reshard | None = None
    strangers: tuple[Stranger, ...] = ()
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request of the outbox; `reply` is None while it is unanswered, and when it is no longer kept."""

    request_id: int
    address: Address
    message: str
    shard: Shard
    created_at: datetime
    reply: Reply | None
    replied_at: datetime | None
    expired: bool = False


async def read_overview(connection: Connection, schema: str, namespace: str) -> Overview:
    """The statements follow each other: what changes in between can be in one and not in another."""
    where = {"namespace": namespace}
    backlog = await (await connection.execute(_READ_BACKLOG, where)).fetchall()
    names = [row[0] for row in backlog]
    members = await live_runners(connection, schema, namespace)
    joined: dict[int, datetime] = dict(await (await connection.execute(_READ_JOINED, where)).fetchall())
    held, applications = await _held(connection, schema, namespace, names)
    return Overview(
        namespace=namespace,
        runners=tuple(
            RunnerOverview(
                incarnation=member.incarnation,
                name=member.name,
                groups=tuple(sorted(member.groups)),
                types=tuple(sorted(member.types)),
                held=_of(member.pid, held),
                draining=member.draining,
                joined_at=joined.get(member.incarnation),
                healthy=member.healthy,
            )
            for member in members
        ),
        groups=tuple(
            GroupOverview(
                name,
                shards,
                open=is_open,
                held=sum(n for (group, _), n in held.items() if group == name),
                pending=pending,
                oldest=oldest,
                timers=timers,
            )
            for name, shards, is_open, pending, oldest, timers in backlog
        ),
        reshard=await read_reshard(connection, namespace),
        strangers=tuple(
            Stranger(pid, applications[pid], _of(pid, held))
            for pid in sorted(applications.keys() - {member.pid for member in members})
        ),
        dead_letters=await fetch_value(connection, _COUNT_DEAD_LETTERS, where),
    )


def _of(pid: int, held: Mapping[tuple[str, int], int]) -> dict[str, int]:
    return {group: count for (group, holder), count in held.items() if holder == pid}


async def _held(
    connection: Connection, schema: str, namespace: str, names: list[str]
) -> tuple[dict[tuple[str, int], int], dict[int, str]]:
    """Shard locks by group and pid of the session, and the application's name by pid."""
    classes = [unsigned(lock_class(schema, namespace, "shard", name)) for name in names]
    cursor = await connection.execute(_READ_HELD, {"names": names, "unsigned_classes": classes})
    rows = await cursor.fetchall()
    held = {(name, pid): count for name, pid, count, _ in rows}
    return held, {pid: application or "" for _, pid, _, application in rows}


async def read_namespaces(connection: Connection) -> list[str]:
    """Of all clusters in the schema."""
    return [row[0] for row in await (await connection.execute(_READ_NAMESPACES)).fetchall()]


async def read_reshard(connection: Connection, namespace: str) -> Reshard | None:
    """The namespace's change of shards that is not finished."""
    row = await (await connection.execute(_READ_RESHARD, {"namespace": namespace})).fetchone()
    if row is None:
        return None
    group, shards, type_, phase, started_at = row
    return Reshard(Change(group, shards, type_), phase, started_at)


async def find_request(connection: Connection, namespace: str, request_id: int) -> StoredRequest | None:
    """None when the namespace has no such request, or no longer."""
    parameters = {"request_id": request_id, "namespace": namespace}
    row = await (await connection.execute(_FIND_REQUEST, parameters)).fetchone()
    if row is None:
        return None
    request_id, type_, entity_id, message, created_at, reply, replied_at, group, number = row
    return StoredRequest(
        request_id=request_id,
        address=Address(type_, entity_id),
        message=message,
        shard=Shard(group, number),
        created_at=created_at,
        reply=decode_reply(request_id, reply) if reply else None,
        replied_at=replied_at,
        expired=reply == EXPIRED,
    )
