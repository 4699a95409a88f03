"""Hears, by LISTEN, which shards got requests that no stream has: sends while Redis is down, and sends in
callers' own transactions. A missed notification costs the time until the next sweep."""

import asyncio
import logging

from psycopg import Error as PostgresError
from psycopg.sql import SQL, Identifier

from entityq.errors import PersistenceError
from entityq.postgres.connect import connect
from entityq.postgres.outbox import parse_unpublished, unpublished_channel
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 1.0


class Listener:
    """One connection of its own, because a pooled one cannot wait."""

    def __init__(self, url: str, schema: str, namespace: str, shards: ShardTable) -> None:
        self._url = url
        self._schema = schema
        self._channel = unpublished_channel(namespace)
        self._shards = shards

    async def run(self) -> None:
        while True:
            try:
                await self._listen()
            except (PostgresError, PersistenceError, OSError) as error:
                log.warning("listener.interrupted: %s; the sweep finds what was missed", error)
            await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _listen(self) -> None:
        connection = await connect(self._url, schema=self._schema, application_name="entityq listener")
        try:
            await connection.execute(SQL("LISTEN {}").format(Identifier(self._channel)))
            async for notification in connection.notifies():
                self._heard(notification.payload)
        finally:
            await connection.close()

    def _heard(self, payload: str) -> None:
        try:
            shard_ids = parse_unpublished(payload)
        except ValueError:
            log.warning("listener.ignored a notification that is not ours on %s", self._channel)
            return
        for shard_id in shard_ids:
            owned = self._shards.get(shard_id)
            if owned is not None:
                owned.must_catch_up()
