"""The slow sweep: finds whatever nobody published, and everything while Redis is down."""

import asyncio
import logging

from psycopg import Error as PostgresError
from psycopg_pool import PoolTimeout

from entityq.postgres.backlog import Backlog
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
    """

    def __init__(
        self,
        backlog: Backlog,
        shards: ShardTable,
        deferrals: Deferrals,
        *,
        redis_up: asyncio.Event,
        interval: float,
    ) -> None:
        self._backlog = backlog
        self._shards = shards
        self._deferrals = deferrals
        self._redis_up = redis_up
        self._interval = interval
        self._position = 0

    async def run(self) -> None:
        while True:
            await self._pause()
            try:
                await self.sweep()
            except (PostgresError, PoolTimeout, OSError) as error:
                log.warning("sweep.failed: %s", error)

    async def _pause(self) -> None:
        if self._redis_up.is_set():
            await asyncio.sleep(self._interval)
            return
        try:
            async with asyncio.timeout(INTERVAL_WITHOUT_REDIS):
                await self._redis_up.wait()
        except TimeoutError:
            return

    async def sweep(self) -> None:
        """Shards with a request that their intake should know by now, and does not, catch up."""
        # With Redis up, a request younger than the last sweep may still be on its way by stream.
        position = await self._backlog.position()
        seen_before = self._position if self._redis_up.is_set() else position
        self._position = position
        quiet = [owned.shard_id for owned in self._shards if not owned.intake.catching_up]
        if not quiet or not seen_before:
            return
        for shard_id, rows in (await self._backlog.sweep(quiet, seen_before, PAGE)).items():
            owned = self._shards.get(shard_id)
            if owned is not None and self._missed(owned, rows):
                log.info("sweep.found shard=%s", owned.shard)
                owned.must_catch_up()

    def _missed(self, owned: OwnedShard, rows: list[tuple[int, int]]) -> bool:
        deferred = self._deferrals.hashes(owned.shard_id)
        return any(hash_ not in deferred and not owned.intake.knows(request_id) for request_id, hash_ in rows)
