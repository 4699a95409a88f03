"""What a runner's heart does in its thread: beat, watch the others, and evict who was silent for a lease time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Protocol

from psycopg import Error as PostgresError

from entityq.errors import PersistenceError
from entityq.postgres.connect import CONNECT_DEADLINE, connect_lease
from entityq.postgres.facts import Facts
from entityq.postgres.heartbeat import Heartbeats, Holder
from entityq.postgres.lease_session import Backend
from entityq.postgres.pinned_connection import LeaseLost, PinnedConnection
from entityq.runner.ring import ended_beside, peer_of
from entityq.runner.suspicion import Suspect, Suspicion

log = logging.getLogger(__name__)

# Seconds between two beats; with a short lease time, a fifth of that. What is left of the second that two
# reads may be apart (see suspicion.py) is for slow statements in a busy process.
PERIOD = 0.7

# Parts of the lease time: a wedged connection is given up, the next one opened, and a beat written on it
# before the others take us for silent.
STATEMENT_DEADLINE = 0.4
RECONNECT_DEADLINE = 0.3

PAUSE_AFTER_FAILURE = 0.1


class Listener(Protocol):
    """What the pulse tells its runner."""

    def membership_changed(self) -> None:
        """Somebody joined, left or died; or we were away, and others may have acted meanwhile."""
        ...

    def runner_ended(self, incarnation: int) -> None:
        """It has ended, its locks are free, and it is this runner's part to tell the others."""
        ...

    def not_a_member(self, reason: str) -> None:
        """The lease session does not hold the runner's number any more. Can come more than once."""
        ...


class Line:
    """How a heart is connected: directly, with its own deadlines."""

    def __init__(self, url: str, *, schema: str, facts: Facts, lease_time: float) -> None:
        self.lease_time = lease_time
        self._url = url
        self._schema = schema
        self._facts = facts

    async def open(self, deadline: float = CONNECT_DEADLINE) -> PinnedConnection:
        """Raises PersistenceError."""
        connection = await connect_lease(
            self._url, schema=self._schema, application_name="entityq heart", deadline=deadline
        )
        return PinnedConnection(connection, self.lease_time * STATEMENT_DEADLINE)

    async def begin(self, pinned: PinnedConnection, incarnation: int) -> Heartbeats:
        """The first statement on a connection. Raises LeaseLost, psycopg.Error."""
        heartbeats = Heartbeats(pinned, schema=self._schema, facts=self._facts, incarnation=incarnation)
        await heartbeats.begin()
        return heartbeats


class Pulse:
    """Of one incarnation. All of it in one loop, and one statement at a time."""

    def __init__(self, line: Line, pinned: PinnedConnection, incarnation: int, backend: Backend) -> None:
        """`pinned`: opened by the line. `backend`: the lease session's."""
        self.fresh_until = float("-inf")
        self.pinned = pinned
        self._line = line
        self._incarnation = incarnation
        self._backend = backend
        self._period = min(PERIOD, line.lease_time / 5)
        self._suspicion = Suspicion(backend, line.lease_time)
        self._heartbeats: Heartbeats | None = None
        self._members: dict[int, Holder] = {}
        self._strangers: set[tuple[int, datetime | None]] = set()
        self._not_evicted: set[tuple[int, datetime | None]] = set()
        self._away = False
        self._failures = 0

    async def begin(self) -> None:
        """The first beat. Raises LeaseLost, psycopg.Error."""
        await self._beat(await self._connected())

    async def run(self, listener: Listener, each_cycle: Callable[[], Awaitable[None]]) -> None:
        """Until it is cancelled. `each_cycle` is called once per beat, and also while Postgres is away."""
        while True:
            try:
                await each_cycle()
                await self._cycle(listener)
            except (LeaseLost, PersistenceError, PostgresError) as error:
                if not self._failures:  # once per outage
                    reason = " ".join(str(error).split())
                    log.warning("heart.failed incarnation=%s: %s; trying again", self._incarnation, reason)
                self._failures += 1
                await asyncio.sleep(min(PAUSE_AFTER_FAILURE * self._failures, self._period))

    async def _connected(self) -> Heartbeats:
        if self.pinned.lost.is_set():
            self._heartbeats = None
            self.pinned = await self._line.open(self._line.lease_time * RECONNECT_DEADLINE)
        if self._heartbeats is None:
            self._heartbeats = await self._line.begin(self.pinned, self._incarnation)
        return self._heartbeats

    async def _cycle(self, listener: Listener) -> None:
        self._notice_absence(listener)
        heartbeats = await self._connected()
        before = self._members
        asked, suspects = await self._beat(heartbeats)
        if self._incarnation not in self._members:
            listener.not_a_member("the runner's row or the lock of its number is gone")
            await asyncio.sleep(self._period)
            return
        if _staying(before) != _staying(self._members):
            listener.membership_changed()
        for incarnation in ended_beside(self._incarnation, before, self._members):
            await self._tell_end(heartbeats, incarnation, listener)
        for suspect in suspects:
            # Backends can be slow to end, and the own beat must not be late: the rest have their turn then.
            if time.monotonic() > asked + self._period / 2:
                break
            await self._evict(heartbeats, suspect, listener)
        await self._wait(heartbeats, asked, listener)

    def _notice_absence(self, listener: Listener) -> None:
        """After a freeze of the process, the lease session is asked at once whether it still lives."""
        if not self._away and time.monotonic() > self.fresh_until:
            self._away = True
            log.warning(
                "heart.was_silent incarnation=%s for over %g s", self._incarnation, self._line.lease_time
            )
            listener.membership_changed()

    async def _beat(self, heartbeats: Heartbeats) -> tuple[float, list[Suspect]]:
        asked = time.monotonic()
        holders = await heartbeats.beat()
        answered = time.monotonic()
        if self._failures:
            log.info("heart.beats_again incarnation=%s", self._incarnation)
            self._failures = 0
        if any(holder.is_backend(self._backend) and holder.number is not None for holder in holders):
            self.fresh_until = asked + self._line.lease_time
            self._away = False
        self._members = {
            holder.row_of: holder
            for holder in holders
            if holder.row_of is not None and holder.number is not None
        }
        self._show_strangers(holders)
        return asked, self._suspicion.observe(asked, answered, holders)

    def _show_strangers(self, holders: Iterable[Holder]) -> None:
        strangers = {(holder.pid, holder.started): holder for holder in holders if holder.incarnation is None}
        for stranger in strangers.keys() - self._strangers:
            holder = strangers[stranger]
            log.warning(
                "leases.stranger pid=%s application_name=%r holds %d shards of this cluster and is no runner:"
                " they are not served",
                holder.pid,
                holder.application,
                holder.shards,
            )
        self._strangers = set(strangers)

    async def _wait(self, heartbeats: Heartbeats, asked: float, listener: Listener) -> None:
        """Until the next beat, or the end of the peer: then the next one reads the ring anew, at once."""
        now = time.monotonic()
        wait = asked + self._period - now
        due = self._suspicion.next_due - now
        if 0 < due < wait:
            wait = due
        peer = peer_of(self._incarnation, self._members)
        number = self._members[peer].number if peer is not None else None
        if wait <= 0:
            return
        if peer is None or number is None:
            await asyncio.sleep(wait)
        elif await heartbeats.has_ended(number, wait):
            del self._members[peer]
            await self._tell_end(heartbeats, peer, listener)

    async def _tell_end(self, heartbeats: Heartbeats, incarnation: int, listener: Listener) -> None:
        try:
            who = await heartbeats.departed(incarnation)
        finally:
            listener.runner_ended(incarnation)
        if who is not None:
            log.warning("runner.died incarnation=%s name=%s host=%s", incarnation, *who)

    async def _evict(self, heartbeats: Heartbeats, suspect: Suspect, listener: Listener) -> None:
        holder, key = suspect.holder, (suspect.holder.pid, suspect.holder.started)
        try:
            ended = await heartbeats.evict(holder)
        except PostgresError as error:
            if key not in self._not_evicted:
                log.error("runner.not_evicted incarnation=%s: %s", holder.incarnation, error)
            self._not_evicted.add(key)
            return
        if ended is None:
            return
        log.error(
            "runner.evicted incarnation=%s name=%s host=%s silent=%.1fs shards=%d%s",
            holder.incarnation,
            holder.name,
            holder.host,
            suspect.silent,
            holder.shards,
            "" if ended else "; its backend has not ended yet",
        )
        if ended and holder.incarnation is not None:
            self._members.pop(holder.incarnation, None)
            listener.runner_ended(holder.incarnation)


def _staying(members: dict[int, Holder]) -> set[int]:
    return {incarnation for incarnation, holder in members.items() if not holder.draining}
