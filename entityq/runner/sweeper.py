"""The slow sweep: finds whatever nobody published, and everything while Redis is down."""

import asyncio
import logging
from collections.abc import Callable

from psycopg import Error as PostgresError

from entityq.outage import Outage
from entityq.postgres.backlog import Backlog, SweptRow
from entityq.runner.availability import Availability
from entityq.runner.deferrals import Deferrals
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)

PAGE = 200
INTERVAL_WITHOUT_REDIS = 0.1


class Sweeper:
    """Compares the oldest unanswered requests of the owned shards with what their intakes know.

    Args:
        redis_up: while it says no, the sweep is how requests arrive.
        interval: seconds between two sweeps while Redis is up.
        cancelled: called with shard id and seq of each request that is cancelled, and not answered yet.
    """

    def __init__(
        self,
        backlog: Backlog,
        shards: ShardTable,
        deferrals: Deferrals,
        *,
        redis_up: Availability,
        interval: float,
        cancelled: Callable[[int, int], None],
    ) -> None:
        self._backlog = backlog
        self._shards = shards
        self._deferrals = deferrals
        self._redis_up = redis_up
        self._interval = interval
        self._cancelled = cancelled
        self._outage = Outage("sweep.failed", "sweep.works_again", "what nobody published waits")
        self._position = 0
        # Where the next sweep of a shard goes on: a page that is full of known requests must not hide the rest.
        self._afters: dict[int, int] = {}

    async def run(self) -> None:
        while True:
            await self._pause()
            try:
                await self.sweep()
            except (PostgresError, OSError) as error:
                self._outage.failed(error)
            else:
                self._outage.worked()

    async def _pause(self) -> None:
        """Shorter when Redis goes meanwhile: what it had taken, and nobody had read, is in the outbox alone."""
        up = self._redis_up.is_set()
        try:
            async with asyncio.timeout(self._interval if up else INTERVAL_WITHOUT_REDIS):
                await (self._redis_up.wait_cleared() if up else self._redis_up.wait())
        except TimeoutError:
            return

    async def sweep(self) -> None:
        """Shards with a request that their intake should know by now, and does not, catch up."""
        # With Redis up, a request younger than the last sweep may still be on its way by stream.
        position = await self._backlog.position()
        seen_before = self._position if self._redis_up.is_set() else position
        self._position = position
        quiet = [owned for owned in self._shards if not owned.intake.catching_up]
        if not quiet or not seen_before:
            return
        afters = {owned.shard_id: self._afters.get(owned.shard_id, 0) for owned in quiet}
        for owned in quiet:
            owned.intake.begin_read()
        try:
            found = await self._backlog.sweep(afters, seen_before, PAGE)
            self._afters = {shard_id: rows[-1].seq for shard_id, rows in found.items() if len(rows) == PAGE}
            for owned in quiet:
                self._compare(owned, found.get(owned.shard_id, []))
        finally:
            for owned in quiet:
                owned.intake.end_read()

    def _compare(self, owned: OwnedShard, rows: list[SweptRow]) -> None:
        for row in rows:
            if row.cancelled:
                self._cancelled(owned.shard_id, row.seq)
        deferred = self._deferrals.hashes(owned.shard_id)
        knows = owned.intake.knows
        if any(row.entity_hash not in deferred and not knows(row.request_id, row.seq) for row in rows):
            # While Redis is down it is how all of them arrive.
            level = logging.INFO if self._redis_up.is_set() else logging.DEBUG
            log.log(level, "sweep.found shard=%s", owned.shard)
            self._afters.pop(owned.shard_id, None)
            owned.must_catch_up()
