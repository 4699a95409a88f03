"""Fires the timers of the owned shards: what is due becomes pending, and is delivered."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress

from psycopg import Error as PostgresError

from entityq.outage import Outage
from entityq.postgres.backlog import Row
from entityq.postgres.channels import parse_timer
from entityq.postgres.pinned_connection import LeaseLost
from entityq.postgres.timers import PAGE, Fired, Statements, fire_timers
from entityq.runner.intake import Verdict
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.shard_table import ShardTable
from entityq.runner.timer_plan import TimerPlan

log = logging.getLogger(__name__)


class Timers:
    """One loop per runner, on the session that holds the leases: who has lost them fires nothing.

    Args:
        room: returns when more requests may be left in the outbox.
        reserve: waits until the mailboxes have room, and keeps it for at most so many rows that are read now.
        deliver: what to do with a row that the intake lets through.
    """

    def __init__(
        self,
        session: Statements,
        shards: ShardTable,
        *,
        room: Callable[[], Awaitable[None]],
        reserve: Callable[[int], AbstractAsyncContextManager[int]],
        deliver: Callable[[OwnedShard, Row], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._shards = shards
        self._room = room
        self._reserve = reserve
        self._deliver = deliver
        self._clock = clock
        self.plan = TimerPlan()
        self._sooner = asyncio.Event()
        self._outage = Outage("timers.failed", "timers.work_again", "what is due waits")

    # ----- what is told

    def due_in(self, seconds: float) -> None:
        """A timer of an owned shard was set."""
        self.plan.look_by(self._clock() + seconds)
        self._sooner.set()

    def look(self) -> None:
        """Shards were acquired."""
        self.due_in(0)

    def heard(self, payload: str) -> None:
        """Somebody has set a timer, perhaps of an owned shard."""
        try:
            shard_id, due = parse_timer(payload)
        except ValueError:
            log.warning("timers.ignored a notification that is not ours")
            return
        if shard_id in self._shards:
            self.plan.heard(due)
            self._sooner.set()

    # ----- the loop

    async def run(self) -> None:
        """Returns when the leases are lost."""
        with suppress(LeaseLost):
            while True:
                await self._until_next_look()
                await self._look()

    async def _until_next_look(self) -> None:
        while (left := self.plan.next_look - self._clock()) > 0:
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._sooner.wait()

    async def _look(self) -> None:
        await self._room()
        async with self._reserve(PAGE) as places:
            owned = {each.shard_id: each for each in self._shards}
            self.plan.begin()
            began = self._clock()
            try:
                fired = await fire_timers(self._session, list(owned), places)
                self._take(owned, fired)
            except PostgresError as error:
                self._outage.failed(error)
                self.plan.failed(self._clock())
            else:
                self._outage.worked()
                self.plan.looked(began, self._clock(), fired)

    def _take(self, asked: dict[int, OwnedShard], fired: Fired) -> None:
        """At once, also while a shard catches up: an eta is no place in the order. What is not delivered here is
        pending, and its shard's next owner reads it."""
        for shard_id, rows in fired.rows.items():
            owned = asked[shard_id]
            for row in rows:
                if not self._shards.owns(owned):
                    break
                if owned.intake.take_row(row.request_id, row.seq) is Verdict.DELIVER:
                    self._deliver(owned, row)
