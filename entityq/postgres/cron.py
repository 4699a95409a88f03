"""What schedules ask the database, and what people ask about schedules."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import cast

from entityq.postgres.connect import Connection, Pool, pooled
from entityq.postgres.outbox import read_replies
from entityq.postgres.queries import load
from entityq.reply import EXPIRED, decode_reply
from entityq.schedules import PREFIX, Seen, define_schedules

_SQL = load("cron.sql")
_LOOK, _READ_SCHEDULES = _SQL["look"], _SQL["read_schedules"]
_STATE = define_schedules("default", {}).__definition__.state


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """`outcome` of the last run: success, failure, defect, interrupted, "unanswered", or None where it is not kept.

    `next_at` is None while it is paused, and where its expression has no instant any more.
    """

    name: str
    group: str
    expression: str
    timezone: str
    paused: bool
    next_at: datetime | None
    last_at: datetime | None
    last_request: int | None
    overlapped: int
    outcome: str | None = None


class CronDesk:
    """Of one runner."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def look(self, request_id: int) -> Seen:
        """Raises psycopg.Error where the connection fails."""
        async with pooled(self._pool) as connection:
            rows = await (await connection.execute(_LOOK, {"request_id": request_id})).fetchall()
        ((now, unanswered),) = rows
        return Seen(now, unanswered)


async def read_schedules(connection: Connection, namespace: str) -> list[StoredSchedule]:
    """Those that are armed or paused, by name. Raises psycopg.Error where the connection fails."""
    values = {"namespace": namespace, "prefix": PREFIX}
    rows = await (await connection.execute(_READ_SCHEDULES, values)).fetchall()
    found = [_stored(name, type_.removeprefix(PREFIX), state) for type_, name, state in rows]
    kept = [schedule for schedule in found if schedule.expression]
    ids = [schedule.last_request for schedule in kept if schedule.last_request]
    replies = await read_replies(connection, ids) if ids else {}
    return [replace(schedule, outcome=_outcome(schedule.last_request, replies)) for schedule in kept]


def _stored(name: str, group: str, state: bytes | None) -> StoredSchedule:
    values = _STATE.load(state)
    moment = cast("dict[str, datetime | None]", values)
    return StoredSchedule(
        name=name,
        group=group,
        expression=str(values["expression"]),
        timezone=str(values["timezone"]),
        paused=bool(values["paused"]),
        next_at=moment["next_at"],
        last_at=moment["last_at"],
        last_request=cast("int", values["last_request"]) or None,
        overlapped=cast("int", values["overlapped"]),
    )


def _outcome(request_id: int | None, replies: dict[int, bytes | None]) -> str | None:
    if request_id is None or request_id not in replies:
        return None
    reply = replies[request_id]
    if reply is None:
        return "unanswered"
    return None if reply == EXPIRED else decode_reply(request_id, reply).outcome.name.lower()
