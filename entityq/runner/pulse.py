"""What a runner's heart does in its thread: beat, watch the others, and evict who was silent for a lease time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Protocol

from psycopg import Error as PostgresError

from entityq.errors import PersistenceError
from entityq.postgres.connect import CONNECT_DEADLINE, connect_lease
from entityq.postgres.facts import Facts
from entityq.postgres.heartbeat import Executes, Heartbeats, Holder
from entityq.postgres.lease_session import Backend
from entityq.postgres.pinned_connection import LeaseLost, PinnedConnection
from entityq.runner.clock import now
from entityq.runner.ring import ended_beside, peer_of
from entityq.runner.suspicion import Suspect, Suspicion
from entityq.runner.tasks import end

log = logging.getLogger(__name__)

# Seconds between two beats; with a short lease time, a fifth of that. What is left of the second that two
# reads may be apart (see suspicion.py) is for slow statements in a busy process.
PERIOD = 0.7

# Parts of the lease time. A wedged connection is given up, and the next one opened, configured and used for a
# beat, before the others take us for silent: with a period, nine tenths in all.
STATEMENT_DEADLINE = 0.4
RECONNECT_DEADLINE = 0.3
# Where the beat before was written in the lease session, there is more time.
LATER_RECONNECT_DEADLINE = 0.6

PAUSE_AFTER_FAILURE = 0.1

# Seconds between two log lines about the same session, whatever goes wrong with its eviction.
TELL_AGAIN = 10.0

FAILURES = (LeaseLost, PersistenceError, PostgresError)


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
        heartbeats = self.heartbeats(pinned, incarnation)
        await heartbeats.begin()
        return heartbeats

    def heartbeats(self, session: Executes, incarnation: int) -> Heartbeats:
        return Heartbeats(
            session,
            schema=self._schema,
            facts=self._facts,
            incarnation=incarnation,
            lease_time=self.lease_time,
        )


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
        self._joined: set[int] = set()
        self._woken = asyncio.Event()
        self._strangers: set[tuple[int, datetime | None]] = set()
        self._told: dict[tuple[int, datetime | None], float] = {}
        self._away = False
        self._failures = 0

    async def begin(self) -> None:
        """The first beat. Raises LeaseLost, psycopg.Error."""
        self._heartbeats = await self._line.begin(self.pinned, self._incarnation)
        await self._beat(self._heartbeats)

    def joined(self, incarnation: int) -> None:
        """Somebody says so: it is missed from now on, also when it ends before a beat has read it."""
        self._joined.add(incarnation)
        self._woken.set()

    async def run(
        self, listener: Listener, each_cycle: Callable[[], Awaitable[None]], lease_session: Executes
    ) -> None:
        """Until it is cancelled. `each_cycle` is called once per beat, and also while Postgres is away."""
        spare = self._line.heartbeats(lease_session, self._incarnation)
        while True:
            try:
                await each_cycle()
                await self._cycle(listener)
            except FAILURES as error:
                self._note_failure(error)
                if self._failures > 1:
                    with suppress(*FAILURES):
                        await self._borrow(spare, listener)
                    await asyncio.sleep(min(PAUSE_AFTER_FAILURE * self._failures, self._period))

    def _note_failure(self, error: Exception) -> None:
        if not self._failures:  # once per outage
            reason = " ".join(str(error).split())
            log.warning("heart.failed incarnation=%s: %s; trying again", self._incarnation, reason)
        self._failures += 1

    # ----- one cycle

    async def _cycle(self, listener: Listener) -> None:
        self._notice_absence(listener)
        before = self._known()
        heartbeats, asked, suspects = await self._next_beat()
        if self._failures:
            log.info("heart.beats_again incarnation=%s", self._incarnation)
            self._failures = 0
        if await self._look(heartbeats, asked, suspects, before, listener):
            await self._wait(heartbeats, asked, listener)
        else:
            await asyncio.sleep(self._period)

    async def _borrow(self, spare: Heartbeats, listener: Listener) -> None:
        """A cycle in the lease session. Whoever can commit is to be heard, also where the server has no
        connection to give ("too many clients"): nobody would be evicted for a better reason than that."""
        before = self._known()
        asked, suspects = await self._beat(spare)
        await self._look(spare, asked, suspects, before, listener)

    def _notice_absence(self, listener: Listener) -> None:
        """After a freeze of the process, the lease session is asked at once whether it still lives."""
        if not self._away and now() > self.fresh_until:
            self._away = True
            log.warning(
                "heart.was_silent incarnation=%s for over %g s", self._incarnation, self._line.lease_time
            )
            listener.membership_changed()

    def _known(self) -> dict[int, Holder | None]:
        """Who must be in the next read, or has ended."""
        joined, self._joined = self._joined, set()
        self._woken.clear()
        return {**dict.fromkeys(joined), **self._members}

    async def _next_beat(self) -> tuple[Heartbeats, float, list[Suspect]]:
        if self._heartbeats is not None and not self.pinned.lost.is_set():
            return (self._heartbeats, *await self._beat(self._heartbeats))
        part = RECONNECT_DEADLINE if self._failures < 2 else LATER_RECONNECT_DEADLINE
        deadline = part * self._line.lease_time
        reconnecting = asyncio.create_task(self._reconnect(deadline), name="entityq heart reconnects")
        try:
            await asyncio.wait([reconnecting], timeout=deadline)
            in_time = reconnecting.done()
        finally:
            await end(reconnecting)
        if not in_time:
            self.pinned.end("it was not open in time")
            raise LeaseLost(f"no new connection, with a beat on it, within {deadline:g} s")
        return reconnecting.result()

    async def _reconnect(self, deadline: float) -> tuple[Heartbeats, float, list[Suspect]]:
        self._heartbeats = None
        self.pinned = await self._line.open(deadline)
        self._heartbeats = await self._line.begin(self.pinned, self._incarnation)
        return (self._heartbeats, *await self._beat(self._heartbeats))

    async def _beat(self, heartbeats: Heartbeats) -> tuple[float, list[Suspect]]:
        asked = now()
        holders = await heartbeats.beat()
        answered = now()
        if any(holder.is_backend(self._backend) and holder.number is not None for holder in holders):
            self.fresh_until = asked + self._line.lease_time
            self._away = False
        self._members = {
            holder.row_of: holder
            for holder in holders
            if holder.row_of is not None and holder.number is not None
        }
        self._show_strangers(holders)
        sessions = {(holder.pid, holder.started) for holder in holders}
        self._told = {session: at for session, at in self._told.items() if session in sessions}
        return asked, self._suspicion.observe(asked, answered, holders)

    async def _look(
        self,
        heartbeats: Heartbeats,
        asked: float,
        suspects: list[Suspect],
        before: dict[int, Holder | None],
        listener: Listener,
    ) -> bool:
        """At what a beat has read. False: this runner is no member any more."""
        if self._incarnation not in self._members:
            listener.not_a_member("the runner's row or the lock of its number is gone")
            return False
        if _staying(before) != _staying(self._members):
            listener.membership_changed()
        for incarnation in ended_beside(self._incarnation, before, self._members):
            await self._tell_end(heartbeats, incarnation, listener)
        for suspect in self._suspicion.postponed:
            self._tell_postponed(suspect)
        for suspect in suspects:
            # Backends can be slow to end, and the own beat must not be late: the rest have their turn then.
            if now() > asked + self._period / 2:
                break
            await self._evict(heartbeats, suspect, listener)
        return True

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
        read = now()
        wait = asked + self._period - read
        due = self._suspicion.next_due - read
        if 0 < due < wait:
            wait = due
        peer = peer_of(self._incarnation, self._members)
        number = self._members[peer].number if peer is not None else None
        if wait <= 0:
            return
        if peer is None or number is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._woken.wait()
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

    # ----- evictions

    async def _evict(self, heartbeats: Heartbeats, suspect: Suspect, listener: Listener) -> None:
        holder = suspect.holder
        try:
            ended = await heartbeats.evict(holder)
        except PostgresError as error:
            if self._may_tell(holder):
                log.error("runner.not_evicted incarnation=%s: %s", holder.incarnation, error)
            return
        if ended is None:
            return
        if self._may_tell(holder):
            log.error(
                "runner.evicted %s%s", _described(suspect), "" if ended else "; its backend has not ended yet"
            )
        if ended and holder.incarnation is not None:
            self._members.pop(holder.incarnation, None)
            listener.runner_ended(holder.incarnation)

    def _tell_postponed(self, suspect: Suspect) -> None:
        log.warning(
            "eviction.postponed %s: %.1f s of this do not count, because our own heartbeats were slow, too;"
            " Postgres is overloaded, or this machine",
            _described(suspect),
            suspect.postponed,
        )

    def _may_tell(self, holder: Holder) -> bool:
        session, at = (holder.pid, holder.started), now()
        if at < self._told.get(session, float("-inf")) + TELL_AGAIN:
            return False
        self._told[session] = at
        return True


def _staying(members: Mapping[int, Holder | None]) -> set[int]:
    return {
        incarnation for incarnation, holder in members.items() if holder is not None and not holder.draining
    }


def _described(suspect: Suspect) -> str:
    holder = suspect.holder
    return (
        f"incarnation={holder.incarnation} name={holder.name} host={holder.host}"
        f" silent={suspect.silent:.1f}s shards={holder.shards}"
    )
