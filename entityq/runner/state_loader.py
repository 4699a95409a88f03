"""Loads the states of activations, many in one statement."""

import asyncio
import logging
from collections.abc import Sequence

from psycopg import Error as PostgresError

from entityq.address import Address
from entityq.batching import Batcher
from entityq.postgres.backlog import Backlog
from entityq.stored_state import StoredState

log = logging.getLogger(__name__)

BATCH = 1_000
PAUSE_AFTER_FAILURE = 0.2

Place = tuple[int, Address]


class StateLoader:
    """Natural batching of loads. `run` belongs to the runner's task group."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._batcher = Batcher[Place, StoredState](self._load, max_items=BATCH, max_size=BATCH)

    async def run(self) -> None:
        await self._batcher.run()

    async def load(self, shard_id: int, address: Address) -> StoredState:
        """The last committed state; waits for as long as Postgres does not answer."""
        while True:
            try:
                return await self._batcher.submit((shard_id, address), 1)
            except (PostgresError, OSError) as error:
                log.warning("entity.load_failed entity=%s: %s", address, error)
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _load(self, places: Sequence[Place]) -> list[StoredState | BaseException]:
        found = await self._backlog.load_entities(places)
        return [found.get(place, StoredState(0, None)) for place in places]
