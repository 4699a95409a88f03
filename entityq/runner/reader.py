"""Reads the streams of the owned shards, with one blocking reader per runner."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from entityq.errors import UnsafeConfiguration
from entityq.redis.consumer import GroupMissing, StreamEntry, StreamGroups, StreamReader
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 0.1
PAUSE_AFTER_REFUSAL = 5.0
ADMIT_DEADLINE = 2.0
MIN_COUNT = 10
MAX_COUNT = 1_000


class Reader:
    """Delivers entries stream by stream, in order.

    After any error of the connection the own pending entries are read first: a reply that was lost on the
    way is only there. After a missing group (Redis was flushed or restarted empty) all shards catch up.

    Args:
        room: returns when the mailboxes have room for more.
        admit: raises UnsafeConfiguration for a server that must not be used.
        wake_stream: an entry in it ends a blocking read, so that a new shard is read at once.
    """

    def __init__(
        self,
        reader: StreamReader,
        groups: StreamGroups,
        shards: ShardTable,
        *,
        wake_stream: bytes,
        deliver: Callable[[OwnedShard, StreamEntry], None],
        room: Callable[[], Awaitable[None]],
        admit: Callable[[], Awaitable[None]],
        prefetch: int,
        block: float,
    ) -> None:
        self._reader = reader
        self._groups = groups
        self._shards = shards
        self._wake_stream = wake_stream
        self._deliver = deliver
        self._room = room
        self._admit = admit
        self._prefetch = prefetch
        self._block = block
        self.connected = asyncio.Event()

    async def run(self) -> None:
        try:
            while True:
                await self._room()
                try:
                    await self._read()
                except GroupMissing as error:
                    log.warning("redis.groups_missing: %s; all shards catch up from the outbox", error)
                    self.connected.clear()
                except UnsafeConfiguration as error:
                    log.error("redis.refused: %s Reading from the outbox meanwhile.", error)
                    await asyncio.sleep(PAUSE_AFTER_REFUSAL)
                except (RedisError, OSError, TimeoutError) as error:
                    if self.connected.is_set():
                        log.warning("redis.read_failed: %s; reading from the outbox meanwhile", error)
                    self.connected.clear()
                    await asyncio.sleep(PAUSE_AFTER_FAILURE)
        finally:
            await self._reader.close()

    async def _read(self) -> None:
        streams = [*self._shards.streams, self._wake_stream]
        if not self.connected.is_set():
            async with asyncio.timeout(ADMIT_DEADLINE):
                await self._admit()
            await self._groups.ensure(streams)
            await self._read_own_pending(streams)
            # What was published meanwhile may be gone; once, because the sweep looks while Redis is down.
            for owned in self._shards:
                owned.must_catch_up()
            self.connected.set()
        count = min(MAX_COUNT, max(MIN_COUNT, self._prefetch // len(streams)))
        self._pass_on(await self._reader.read(streams, count=count, block=self._block))

    async def _read_own_pending(self, streams: list[bytes]) -> None:
        after = dict.fromkeys(streams, b"0")
        while after:
            entries = await self._reader.pending(after, count=MAX_COUNT)
            self._pass_on(entries)
            after = {entry.stream: entry.entry_id for entry in entries}

    def _pass_on(self, entries: list[StreamEntry]) -> None:
        for entry in entries:
            owned = self._shards.reading(entry.stream)
            # Without an owner here it is the wake entry, or the shard was given up: its next owner claims it.
            if owned is not None:
                self._deliver(owned, entry)
