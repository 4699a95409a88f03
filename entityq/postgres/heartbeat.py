"""What a runner's heart writes and reads: its own counter, the others' counters, who holds which locks."""

import re
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from entityq.address import lock_class
from entityq.postgres.facts import Facts
from entityq.postgres.lease_session import Backend
from entityq.postgres.membership import runner_class, unsigned
from entityq.postgres.pinned_connection import Parameters, Rows
from entityq.postgres.queries import load
from entityq.postgres.transaction import Fence

_QUERIES = load("heartbeat.sql")

_LEASE_SESSION = re.compile(r"entityq:(\d+)")

# How long the server may take to end a backend, in seconds.
_TERMINATION_WAIT = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A session that holds the lock of a runner's number, or of shards, as one read showed it.

    `row_of` is the incarnation of the row in `runner` that this very session wrote, None without one; `name`,
    `host`, `draining` and `heartbeat` are from it. `started` is None where our role may not see it. A
    `heartbeat` of None, with a row, is a runner whose code has none; `lease_time` (seconds) of None, one that
    has not said yet how long it may be silent.
    """

    pid: int
    started: datetime | None
    application: str = ""
    number: int | None = None
    shards: int = 0
    row_of: int | None = None
    name: str = ""
    host: str = ""
    draining: bool = False
    heartbeat: int | None = None
    lease_time: float | None = None

    @property
    def incarnation(self) -> int | None:
        """None for a session that is no runner's."""
        if self.row_of is not None:
            return self.row_of
        named = _LEASE_SESSION.fullmatch(self.application)
        return int(named[1]) if named else None

    def is_backend(self, backend: Backend) -> bool:
        return self.pid == backend.pid and self.started == backend.started


class Executes(Protocol):
    """A session that does: a pinned connection, or a lease session on it."""

    def execute(
        self, query: bytes, parameters: Parameters | None = None
    ) -> Coroutine[object, object, Rows]: ...


class Heartbeats:
    """The statements of one incarnation, in one session. All of them raise LeaseLost where it ended,
    and psycopg.Error where the server refused and the connection lives on."""

    def __init__(
        self,
        session: Executes,
        *,
        schema: str,
        facts: Facts,
        incarnation: int,
        lease_time: float,
    ) -> None:
        """`lease_time`: for how many seconds this runner may be silent, to be told to the others."""
        self._session = session
        self._incarnation = incarnation
        self._schema = schema
        self._namespace = facts.namespace
        self._runner_class = runner_class(schema, facts.namespace)
        shard_classes = [lock_class(schema, facts.namespace, "shard", name) for name in facts.groups]
        self._beat: dict[str, object] = {
            "incarnation": incarnation,
            "namespace": facts.namespace,
            "lease_time": float(lease_time),
            "runner_class": unsigned(self._runner_class),
            "classes": [unsigned(class_) for class_ in (self._runner_class, *shard_classes)],
        }

    async def begin(self) -> None:
        """Must be the first statement of the connection."""
        await self._session.execute(_QUERIES["begin_heartbeat"], {"incarnation": self._incarnation})

    async def beat(self) -> list[Holder]:
        """Raises this runner's counter and reads everybody's. Empty: this runner's row is gone."""
        rows = await self._session.execute(_QUERIES["beat"], self._beat)
        return [
            Holder(
                pid=pid,
                started=started,
                application=application,
                number=number,
                shards=shards,
                row_of=row_of,
                name=name,
                host=host,
                draining=draining,
                heartbeat=heartbeat,
                lease_time=lease_time,
            )
            for (
                pid,
                started,
                application,
                number,
                shards,
                row_of,
                name,
                host,
                draining,
                heartbeat,
                lease_time,
            ) in rows
        ]

    async def has_ended(self, number: int, wait: float) -> bool:
        """Whether nobody holds a runner's number any more; waits for that for so many seconds."""
        parameters = {"class": self._runner_class, "number": number, "wait_ms": max(1, int(wait * 1000))}
        rows = await self._session.execute(_QUERIES["await_end"], parameters)
        return bool(rows[0][0])

    async def departed(self, incarnation: int) -> tuple[str, str] | None:
        """Name and host of a runner that ended without having left the membership."""
        rows = await self._session.execute(_QUERIES["read_departed"], {"incarnation": incarnation})
        return (rows[0][0], rows[0][1]) if rows else None

    async def evict(self, holder: Holder) -> bool | None:
        """Ends the session, if it and its counter are still as the holder was read; None otherwise.

        False: it was told to end, and has not yet.
        """
        parameters: dict[str, object] = {
            "pid": holder.pid,
            "backend_start": holder.started,
            "wait_ms": int(_TERMINATION_WAIT * 1000),
        }
        if holder.row_of is None:
            query = "evict_session"
            parameters["application"] = holder.application
        else:
            query = "evict_runner"
            parameters |= {"incarnation": holder.row_of, "heartbeat": holder.heartbeat}
        rows = await self._session.execute(_QUERIES[query], parameters)
        if rows and holder.incarnation is not None:
            await self._end_turns(Fence(self._schema, self._namespace, holder.incarnation))
        return bool(rows[0][0]) if rows else None

    async def _end_turns(self, fence: Fence) -> None:
        await self._session.execute(_QUERIES["end_turns"], {"turns": fence.name, "commits": fence.commits})
