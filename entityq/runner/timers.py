"""Fires the timers of the owned shards: what is due becomes pending, and its shard reads it."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from psycopg import Error as PostgresError

from entityq.outage import Outage
from entityq.postgres.pinned_connection import LeaseLost
from entityq.postgres.queries import load
from entityq.runner.committer import LeaseStatements
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)

_QUERIES = load("timers.sql")
FIRE, NEXT = _QUERIES["fire_timers"], _QUERIES["next_timer"]

# Rows of one shard in one statement; seconds between two looks at what others may have left.
PAGE = 500
LOOK_EVERY = 1.0


class Timers:
    """One loop per runner, on the session that holds the leases: who has lost them fires nothing."""

    def __init__(
        self,
        session: LeaseStatements,
        shards: ShardTable,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._shards = shards
        self._clock = clock
        self._next = 0.0
        self._sooner = asyncio.Event()
        self._outage = Outage("timers.failed", "timers.work_again", "what is due waits")

    def due_in(self, seconds: float) -> None:
        """A timer of an owned shard was set."""
        due = self._clock() + seconds
        if due < self._next:
            self._next = due
            self._sooner.set()

    async def run(self) -> None:
        """Returns when the leases are lost."""
        with suppress(LeaseLost):
            while True:
                await self._until_due()
                try:
                    await self._fire()
                except PostgresError as error:
                    self._outage.failed(error)
                else:
                    self._outage.worked()

    async def _until_due(self) -> None:
        while (left := self._next - self._clock()) > 0:
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._sooner.wait()

    async def _fire(self) -> None:
        self._next = self._clock() + LOOK_EVERY
        owned = {each.shard_id: each for each in self._shards}
        if not owned:
            return
        rows = await self._session.execute(FIRE, {"shard_ids": list(owned), "page": PAGE})
        self._tell([shard_id for (shard_id,) in rows])
        for (seconds,) in await self._session.execute(NEXT, {"shard_ids": list(owned)}):
            self.due_in(max(0.0, seconds))

    def _tell(self, shard_ids: Collection[int]) -> None:
        for shard_id in shard_ids:
            owned = self._shards.get(shard_id)
            if owned is not None:
                owned.must_catch_up()
