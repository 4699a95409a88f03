"""Keeps a runner's leases in step with the membership, for one life of its lease session."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

from psycopg import Error

from entityq.batching import Batcher, BatcherClosed
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.facts import Group
from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.membership import Member
from entityq.postgres.pinned_connection import LeaseLost
from entityq.redis.control import ControlChannel, ControlMessage
from entityq.runner.lease_plan import closed, owners, plan, retry

_log = logging.getLogger(__name__)

# Seconds between looks at the membership and the locks when nobody says that something changed, and nothing
# has for a while.
POLL = 2.0

# Of that: between the looks after a change, because the next word can be lost, and the longest wait for a lock.
SOON = 0.25

# Shards unlocked by one statement.
MOST_AT_ONCE = 1_000

# After these the assignment, or who holds a lock, can be another.
_WAKING = frozenset({"joined", "released", "died"})


class ShardOwner(Protocol):
    """What does the work of the shards."""

    def acquired(self, shard_id: int, epoch: int) -> None:
        """The lease is ours now: catch up and serve."""
        ...

    async def release(self, shard_id: int) -> None:
        """Returns when the shard's activations have ended and its turns are committed or dropped.

        Cancelled after the termination time: then what still runs is to be abandoned.
        """
        ...

    def lost(self, reason: str) -> None:
        """Every lease is gone, now: nothing more may be committed. Called at most once."""
        ...


class LeaseKeeper:
    """Acquires the shards that this runner should own, gives up the others, and notices when all are lost."""

    def __init__(
        self,
        session: LeaseSession,
        facts: CurrentFacts,
        groups: Iterable[str],
        owner: ShardOwner,
        control: ControlChannel,
        *,
        termination_time: float,
        poll: float = POLL,
    ) -> None:
        """`groups`: those of the session's claim; of these, the open ones are served. Times in seconds."""
        self._session = session
        self._me = session.incarnation
        self._facts = facts
        self._names = sorted(set(groups))
        self._groups: list[Group] = []
        self._closed: list[str] = []
        self._owner = owner
        self._control = control
        self._termination_time = termination_time
        self._poll = poll
        self._wait = poll * SOON
        self._nudged = asyncio.Event()
        self._draining = False
        self._drained = asyncio.Event()
        self._leaving: dict[int, asyncio.Task[None]] = {}
        # What becomes free while one unlock is under way is unlocked, and told to the others, with the next.
        self._unlocks = Batcher[int, None](self._unlock, max_items=MOST_AT_ONCE, max_size=MOST_AT_ONCE)
        # Shards that others have unlocked since the last look.
        self._freed: set[int] = set()
        self._retry: float | None = None
        self._members: tuple[Member, ...] = ()
        self._assigned: dict[int, int] = {}

    @property
    def members(self) -> tuple[Member, ...]:
        """The live runners, as of the last look at them."""
        return self._members

    async def run(self) -> None:
        """Returns when the session is lost (`owner.lost` was called) or, without that call, when drained."""
        with self._control.listening(self._heard):
            try:
                async with asyncio.TaskGroup() as tasks:
                    watch = tasks.create_task(self._watch(), name="entityq lease watch")
                    unlocks = tasks.create_task(self._unlocks.run(), name="entityq unlocks")
                    heed = tasks.create_task(self._heed_facts(), name="entityq facts of leases")
                    with suppress(LeaseLost):  # the watch knows it, too, and tells the owner
                        await self._tell("joined")
                        await self._look_until_drained(tasks)
                        for task in (heed, unlocks, watch):
                            task.cancel()
            except* LeaseLost:
                pass  # the owner knows it from the watch
            finally:
                self._drained.set()  # nobody is left who could hand over anything

    async def drain(self) -> None:
        """Leaves the membership, then gives up every shard as it becomes free; returns when none is left.

        To be called while `run` runs. Returns early when the session is lost.
        """
        self._draining = True
        try:
            await self._session.drain()  # the others see it when they hear of the first shard released
        except LeaseLost:
            pass
        except Error as error:
            _log.warning("leases.still_a_member incarnation=%s while it drains: %s", self._me, error)
        self._nudged.set()
        await self._drained.wait()

    def nudge(self) -> None:
        """Look at the membership and the locks now."""
        self._nudged.set()

    async def _watch(self) -> None:
        await self._session.lost.wait()
        self._owner.lost(self._session.reason)
        raise LeaseLost(self._session.reason)

    async def _heed_facts(self) -> None:
        while True:
            await self._facts.change()
            self._nudged.set()

    async def _look_until_drained(self, tasks: asyncio.TaskGroup) -> None:
        while not self._draining:
            # Before looking: a nudge that comes while we look is about what we have not seen.
            self._nudged.clear()
            freed, self._freed = self._freed, set()
            try:
                # At once, because nobody serves them, and as assigned so far: the look gives up what it must.
                await self._acquire([shard for shard in freed if self._assigned.get(shard) == self._me])
                await self._look(tasks)
            except Error as error:
                _log.warning("leases.not_looked_after incarnation=%s: %s; trying again", self._me, error)
                self._retry = None
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait if self._retry is None else self._retry):
                    await self._nudged.wait()
        self._give_up(tasks, [shard for shard in self._session.epochs if shard not in self._leaving])
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        held = await self._session.held()
        members = await self._session.members()
        groups = self._open_groups()
        changed = members != self._members or groups != self._groups
        if changed:
            self._members, self._groups = members, groups
            self._assigned = owners(members, groups)
        if all(member.incarnation != self._me for member in members):
            self._session.end("the runner's own row is gone")
            raise LeaseLost(self._session.reason)
        todo = plan(self._me, self._assigned, held, self._leaving.keys(), closed(held, groups))
        self._give_up(tasks, todo.give_up)
        missed = not await self._acquire(todo.acquire)
        self._wait = min(self._poll, self._poll * SOON if changed else self._wait * 2)
        self._retry = retry(self._retry, missed=missed, changed=changed, poll=self._poll * SOON)
        if self._retry == self._poll * SOON:
            self._facts.outdated()  # perhaps nobody has the lock, and the group is closed

    def _open_groups(self) -> list[Group]:
        """Of those of the claim, as the facts are now. Their shards can be acquired from now on."""
        facts = self._facts.now
        self._session.learn(facts)
        groups = [facts.groups[name] for name in self._names]
        closed_now = [group.name for group in groups if not group.open]
        if closed_now and closed_now != self._closed:
            _log.warning(
                "runner.groups_closed incarnation=%s groups=%s: `entityq reshard` is under way, or was interrupted;"
                " their shards are taken again at its end",
                self._me,
                ",".join(closed_now),
            )
        self._closed = closed_now
        return [group for group in groups if group.open]

    async def _acquire(self, shard_ids: Sequence[int]) -> bool:
        """Whether none was missed. None of them is held already."""
        wanted = [shard for shard in shard_ids if shard not in self._session.epochs]
        if not wanted or self._draining:
            return True
        acquired = await self._session.acquire(wanted)
        if acquired:
            _log.info("leases.acquired incarnation=%s shards=%d", self._me, len(acquired))
        for shard_id, epoch in acquired.items():
            self._owner.acquired(shard_id, epoch)
        return len(acquired) == len(wanted)

    def _give_up(self, tasks: asyncio.TaskGroup, shard_ids: Sequence[int]) -> None:
        for shard_id in shard_ids:
            task = tasks.create_task(self._release(shard_id), name=f"entityq release of shard {shard_id}")
            self._leaving[shard_id] = task

    async def _release(self, shard_id: int) -> None:
        try:
            async with asyncio.timeout(self._termination_time):
                await self._owner.release(shard_id)
        except TimeoutError:
            _log.warning(
                "leases.release_overdue incarnation=%s shard=%s seconds=%g: what still runs there is abandoned",
                self._me,
                shard_id,
                self._termination_time,
            )
        with suppress(LeaseLost, BatcherClosed):
            await self._unlocks.submit(shard_id, 1)
        del self._leaving[shard_id]
        if self._assigned.get(shard_id) == self._me:  # again: who should have had it has left meanwhile
            self._nudged.set()

    async def _unlock(self, shard_ids: Sequence[int]) -> Sequence[None]:
        await self._session.release(shard_ids)
        await self._tell("released", shards=list(shard_ids))
        return [None] * len(shard_ids)

    async def _tell(self, kind: str, **more: Any) -> None:
        await self._control.publish(ControlMessage(kind, {"incarnation": self._me, **more}))

    def _heard(self, message: ControlMessage) -> None:
        if message.kind not in _WAKING or message.fields.get("incarnation") == self._me:
            return
        shards = message.fields.get("shards")
        if isinstance(shards, list):
            self._freed.update(shard for shard in cast("list[object]", shards) if isinstance(shard, int))
        self._nudged.set()
