"""Publishes what turns have sent: a sender for each lease of a shard."""

import logging
from collections.abc import Iterable, Sequence

from psycopg import Error as PostgresError

from entityq.redis.publisher import Publisher
from entityq.runner.commit import SentRow
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.resources import Resources
from entityq.runner.tasks import Tasks
from entityq.snowflake import Snowflakes

log = logging.getLogger(__name__)


class TurnPublishers:
    """`ids` are the incarnation's: its machine number is leased, so its sender ids meet nobody else's."""

    def __init__(self, resources: Resources, ids: Snowflakes, tasks: Tasks) -> None:
        self._resources = resources
        self._ids = ids
        self._tasks = tasks

    def new(self) -> Publisher:
        """Of a lease that begins.

        What the shard's owner before committed, and did not publish, must not be overtaken: the first entry
        is a gap, and whoever gets it reads the outbox first.
        """
        return Publisher(
            self._resources.streams,
            self._resources.breaker,
            stream_of=self._stream_of,
            sender=self._ids.new(),
            unpublished=self._unpublished,
            first=2,
        )

    async def publish(self, owned: OwnedShard, rows: Sequence[SentRow]) -> None:
        """In outbox order."""
        await owned.publisher.publish([(row.request, row.shard_id, row.seq) for row in rows])

    def _stream_of(self, shard_id: int) -> bytes | None:
        shard = self._resources.current_facts.shard(shard_id)
        return None if shard is None else self._resources.keys.stream(shard)

    def _unpublished(self, shard_ids: Iterable[int]) -> None:
        self._tasks.start(self._notify(list(shard_ids)), "notify unpublished")

    async def _notify(self, shard_ids: Sequence[int]) -> None:
        try:
            await self._resources.backlog.notify_unpublished(self._resources.settings.namespace, shard_ids)
        except (PostgresError, OSError) as error:
            log.debug("publisher.not_notified: %s; the sweep finds it", error)
