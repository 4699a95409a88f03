"""Hears, by LISTEN, which shards got requests that no stream has: sends while Redis is down, and sends in
callers' own transactions. A missed notification costs the time until the next sweep."""

import logging

from psycopg import Error as PostgresError

from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.outbox import parse_unpublished, unpublished_channel
from entityq.postgres.pinned_connection import LeaseLost
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)


class Listener:
    """Listens on the lease session, which is direct and lives as long as there are leases."""

    def __init__(self, session: LeaseSession, namespace: str, shards: ShardTable) -> None:
        self._session = session
        self._channel = unpublished_channel(namespace)
        self._shards = shards

    async def run(self) -> None:
        """Returns at once: what is heard from then on makes its shard catch up."""
        try:
            await self._session.listen(self._channel, self._heard)
        except LeaseLost:
            return
        except PostgresError as error:
            log.warning("listener.deaf: %s; the sweep finds what is missed", error)

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
