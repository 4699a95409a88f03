"""The session that makes a process a runner: its number, membership and shard locks live and die with it."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn, Self

from psycopg import Error

from entityq.address import lock_class
from entityq.errors import UnsafeConfiguration
from entityq.postgres.connect import connect_lease
from entityq.postgres.facts import Facts
from entityq.postgres.membership import (
    LIVE_RUNNERS,
    Member,
    live_runners_parameters,
    members_of,
    runner_class,
    unsigned,
)
from entityq.postgres.pinned_connection import LeaseLost, Parameters, PinnedConnection, Rows
from entityq.postgres.queries import load

_log = logging.getLogger(__name__)

_QUERIES = load("leases.sql")

# A request that has lost so many attempts is suspected of ending the processes that run it.
SUSPECT = 2

# Rows that a takeover looks at, of all its shards and at least of each, for what their owner can have run.
_HEADS = 5_000
_LEAST_HEADS = 50

# Machine numbers of runners; other clients draw one of 512..1023.
RUNNER_NUMBERS = 512

# How long the server may take to end a ghost before the new session goes on without its locks, in seconds.
_GHOST_WAIT = 1.0

# And how long a transactional turn of a shard's last owner may stand still at its commit.
OVERDUE_TURN = 0.1


@dataclass(frozen=True, slots=True)
class Backend:
    """One server process for one life: pids are used again, a pid with its start is not."""

    pid: int
    started: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a runner tells the others about itself.

    `place`: the same for runners that follow each other, as at a restart; unique among all others. Empty: it
    follows nobody.
    """

    name: str
    groups: Sequence[str]
    types: Sequence[str]
    weight: float = 1.0
    host: str = ""
    place: str = ""


class LeaseSession:
    """A member of the cluster, for one life of its pinned connection. Made by `open`.

    The shards that it holds are those in `epochs`; a lock is never taken twice, because locks stack.
    """

    def __init__(
        self,
        pinned: PinnedConnection,
        *,
        schema: str,
        facts: Facts,
        incarnation: int,
        backend: Backend,
    ) -> None:
        self.incarnation = incarnation
        self.number = -1
        self.backend = backend
        self._pinned = pinned
        self._schema = schema
        self._namespace = facts.namespace
        self._keys: dict[int, tuple[int, int]] = {}
        self._epochs: dict[int, int] = {}
        self._changing = asyncio.Lock()  # one change of the locks at a time: see `acquire`
        self.learn(facts)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        schema: str,
        facts: Facts,
        claim: Claim,
        lease_time: float,
        ghost: Backend | None = None,
    ) -> Self:
        """Connects, ends the backend of the session before (`ghost`), takes a number and joins the cluster.

        `lease_time`: the deadline of every statement, in seconds. `ghost`: the last session's `backend`.
        Raises PersistenceError (no connection), LeaseLost or psycopg.Error (it failed meanwhile), and
        UnsafeConfiguration when no runner number is free.
        """
        connection = await connect_lease(url, schema=schema)
        pinned = PinnedConnection(connection, lease_time)
        try:
            if ghost is not None:
                await _end_ghost(pinned, ghost, lease_time)
            ((incarnation, pid, started, _),) = await pinned.execute(_QUERIES["begin_incarnation"])
            session = cls(
                pinned,
                schema=schema,
                facts=facts,
                incarnation=incarnation,
                backend=Backend(pid, started),
            )
            await session._join(claim)
        except BaseException as error:
            pinned.end(f"the session could not be opened: {error}")
            raise
        return session

    @property
    def lost(self) -> asyncio.Event:
        """Set when the session has ended, for whatever reason, `close` included."""
        return self._pinned.lost

    @property
    def reason(self) -> str:
        """Why the session ended; empty while it lives."""
        return self._pinned.reason

    @property
    def epochs(self) -> Mapping[int, int]:
        """The shards held, by shard id, with the epoch under which each was acquired."""
        return self._epochs

    async def execute(self, query: bytes, parameters: Parameters | None = None) -> Rows:
        """One statement in the session that holds the leases; see PinnedConnection.execute."""
        return await self._pinned.execute(query, parameters)

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Calls `heard` with each notification's payload; see PinnedConnection.listen."""
        await self._pinned.listen(channel, heard)

    def learn(self, facts: Facts) -> None:
        """From now on the shards of these facts can be acquired. What is held is not touched by it.

        The keys of earlier facts stay: ids are never given again, and a lock must be found until it is released.
        """
        self._keys |= _shard_keys(self._schema, facts)

    async def acquire(self, shard_ids: Iterable[int]) -> dict[int, int]:
        """Takes the shards that nobody else holds. Returns those of `shard_ids` now held, with their epochs.

        A shard that is held already keeps its epoch. Shards of closed groups are not to be had. Raises LeaseLost.
        """
        wanted = list(dict.fromkeys(shard_ids))
        async with self._changing:
            missing = [shard_id for shard_id in wanted if shard_id not in self._epochs]
            if missing:
                await self._take(missing)
            return {shard_id: self._epochs[shard_id] for shard_id in wanted if shard_id in self._epochs}

    async def release(self, shard_ids: Iterable[int]) -> None:
        """Unlocks shards, after every statement that was queued before. Those not held are left out.

        Raises LeaseLost, also when one of them turns out not to be locked.
        """
        async with self._changing:
            held = [shard_id for shard_id in dict.fromkeys(shard_ids) if shard_id in self._epochs]
            if not held:
                return
            for shard_id in held:
                del self._epochs[shard_id]
            await self._leave(held)
            await self._unlock(held)

    async def held(self) -> set[int]:
        """The shards that pg_locks shows for this session: how a lease is refreshed.

        Raises LeaseLost, and ends the session, when a lock that it should hold is not there.
        """
        async with self._changing:
            rows = await self.execute(_QUERIES["read_held"])
            locked = {(class_, number) for class_, number in rows}
            if (unsigned(runner_class(self._schema, self._namespace)), self.number) not in locked:
                self._fail("the lock of the runner's number is gone")
            # A reshard gives another id, and the same lock, to the same number of a group.
            ids = {key: shard_id for shard_id, key in self._keys.items()}
            ids |= {self._keys[shard_id]: shard_id for shard_id in self._epochs}
            found = {
                shard_id for (class_, number), shard_id in ids.items() if (unsigned(class_), number) in locked
            }
            missing = self._epochs.keys() - found
            if missing:
                self._fail(f"the lock of shard {min(missing)} is gone")
            return found

    async def members(self) -> tuple[Member, ...]:
        """The live runners of the cluster. Raises LeaseLost."""
        rows = await self.execute(LIVE_RUNNERS, live_runners_parameters(self._schema, self._namespace))
        return members_of(rows)

    async def drain(self) -> None:
        """Leaves the membership and keeps the locks: the others prepare to take the shards."""
        await self.execute(_QUERIES["leave_membership"], {"incarnation": self.incarnation})

    async def close(self) -> None:
        """Leaves the cluster. Whatever is still held is free a moment later."""
        if self.lost.is_set():
            return
        try:
            await self.execute(_QUERIES["remove_runner"], {"incarnation": self.incarnation})
        except (LeaseLost, Error) as error:
            _log.warning("leases.row_left incarnation=%s: %s", self.incarnation, error)
        finally:
            self.end("closed")

    def end(self, reason: str) -> None:
        """Gives up the session and every lease at once, without waiting for the server."""
        self._pinned.end(reason)

    async def _join(self, claim: Claim) -> None:
        class_ = runner_class(self._schema, self._namespace)
        # A random start keeps many runners from trying the same numbers, and a number from being used again
        # at once: the snowflakes of its last holder may be ahead of our clock.
        start = secrets.randbelow(RUNNER_NUMBERS)
        rows = await self.execute(
            _QUERIES["take_number"], {"class": class_, "start": start, "numbers": RUNNER_NUMBERS}
        )
        if not rows:
            raise UnsafeConfiguration(
                f"All {RUNNER_NUMBERS} runner numbers of namespace {self._namespace} are taken.",
                advice="Stop some runners, or give some of them another namespace.",
            )
        self.number = rows[0][0]
        await self.execute(
            _QUERIES["join_cluster"],
            {
                "unsigned_class": unsigned(class_),
                "incarnation": self.incarnation,
                "namespace": self._namespace,
                "number": self.number,
                "name": claim.name,
                "place": claim.place,
                "host": claim.host,
                "pid": self.backend.pid,
                "backend_start": self.backend.started,
                "groups": list(claim.groups),
                "types": list(claim.types),
                "weight": claim.weight,
            },
        )

    async def _take(self, shard_ids: Sequence[int]) -> None:
        parameters = {
            **self._lock_keys(shard_ids),
            "incarnation": self.incarnation,
            "heads": max(_LEAST_HEADS, _HEADS // len(shard_ids)),
            "suspect": SUSPECT,
        }
        try:
            rows = await self.execute(_QUERIES["acquire_shards"], parameters)
        except Error:
            # The statement was undone, but locks of a session are not: none may be left without an epoch.
            await self._unlock(shard_ids, strict=False)
            raise
        self._epochs.update({shard_id: epoch for shard_id, epoch in rows if epoch is not None})
        unnumbered = [shard_id for shard_id, epoch in rows if epoch is None]
        if unnumbered:
            _log.info(
                "leases.refused incarnation=%s shard=%s and %d more: the row is locked, or the group is closed",
                self.incarnation,
                unnumbered[0],
                len(unnumbered) - 1,
            )
            await self._end_overdue_turns(unnumbered)
            await self._unlock(unnumbered)

    async def _end_overdue_turns(self, shard_ids: Sequence[int]) -> None:
        """Those that hold the rows of these shards; the next try finds them free."""
        cluster = unsigned(runner_class(self._schema, self._namespace))
        parameters = {"shard_ids": list(shard_ids), "cluster": cluster, "overdue": OVERDUE_TURN}
        try:
            rows = await self.execute(_QUERIES["end_overdue_turns"], parameters)
        except Error as error:
            _log.warning("leases.overdue_turns_not_ended incarnation=%s: %s", self.incarnation, error)
            return
        for shard_id, pid, _ in rows:
            _log.warning(
                "leases.overdue_turn_ended incarnation=%s shard=%s pid=%s: a transactional turn of the last owner was"
                " at its commit for more than %g s",
                self.incarnation,
                shard_id,
                pid,
                OVERDUE_TURN,
            )

    async def _unlock(self, shard_ids: Sequence[int], *, strict: bool = True) -> None:
        """Ends the session where that is not certain: a lock that nobody knows of blocks a shard for ever."""
        try:
            rows = await self.execute(_QUERIES["unlock_shards"], self._lock_keys(shard_ids))
        except Error as error:
            self._fail(f"shard {shard_ids[0]} could not be unlocked: {error}")
        stray = [shard_id for shard_id, unlocked in rows if not unlocked]
        if stray and strict:
            self._fail(f"the lock of shard {stray[0]} was gone before its release")

    async def _leave(self, shard_ids: Sequence[int]) -> None:
        """The next owner need not ask which turn has ended this process."""
        try:
            await self.execute(
                _QUERIES["leave_shards"], {"shard_ids": list(shard_ids), "incarnation": self.incarnation}
            )
        except Error as error:
            _log.warning("leases.left_without_a_word shard=%s: %s", shard_ids[0], error)

    def _lock_keys(self, shard_ids: Sequence[int]) -> dict[str, object]:
        keys = [self._keys[shard_id] for shard_id in shard_ids]
        return {
            "shard_ids": list(shard_ids),
            "classes": [class_ for class_, _ in keys],
            "numbers": [number for _, number in keys],
        }

    def _fail(self, reason: str) -> NoReturn:
        self.end(reason)
        raise LeaseLost(reason)


def _shard_keys(schema: str, facts: Facts) -> dict[int, tuple[int, int]]:
    """The lock key of every shard id."""
    keys: dict[int, tuple[int, int]] = {}
    for group in facts.groups.values():
        class_ = lock_class(schema, facts.namespace, "shard", group.name)
        keys.update({group.first_shard + number: (class_, number) for number in range(group.shards)})
    return keys


async def _end_ghost(pinned: PinnedConnection, ghost: Backend, lease_time: float) -> None:
    wait = min(_GHOST_WAIT, lease_time / 2)
    rows = await pinned.execute(
        _QUERIES["end_ghost"],
        {"wait_ms": int(wait * 1000), "pid": ghost.pid, "backend_start": ghost.started},
    )
    if rows and not rows[0][0]:
        _log.warning(
            "leases.ghost_stays pid=%s: it was told to end, and has not within %g s", ghost.pid, wait
        )
    elif rows:
        _log.info("leases.ghost_ended pid=%s", ghost.pid)
