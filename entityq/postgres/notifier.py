"""Tells the runners, through Postgres, that requests are waiting which no stream has. Off the hot path."""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial

from psycopg import Error

from entityq.errors import PersistenceError
from entityq.postgres.outbox import notify_unpublished
from entityq.postgres.session import ConnectionLost, Session

_log = logging.getLogger(__name__)


class Notifier:
    """Shards that are added while one notification is under way go with the next. A lost one is not repeated:
    the sweep of each shard finds the same."""

    def __init__(self, session: Session, namespace: str) -> None:
        self._session = session
        self._namespace = namespace
        self._shard_ids: set[int] = set()
        self._added = asyncio.Event()

    def add(self, shard_ids: Iterable[int]) -> None:
        self._shard_ids.update(shard_ids)
        self._added.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._added.wait()
            self._added.clear()
            shard_ids, self._shard_ids = self._shard_ids, set()
            try:
                await self._session.run(
                    partial(notify_unpublished, namespace=self._namespace, shard_ids=shard_ids)
                )
            except (ConnectionLost, PersistenceError, Error) as error:
                _log.debug("notifier.failed: %r", error)
