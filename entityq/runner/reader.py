"""Reads the streams of the owned shards, with one blocking reader per runner."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from entityq.errors import UnsafeConfiguration
from entityq.outage import Outage
from entityq.redis.consumer import GroupMissing, ReadSize, StreamEntry, StreamGroups, StreamReader
from entityq.runner.availability import Availability
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)

# Seconds. A blocking read that says nothing for longer has lost its connection: seen soon.
LONGEST_BLOCK = 1.0
PAUSE_AFTER_FAILURE = 0.1
PAUSE_AFTER_REFUSAL = 5.0
ADMIT_DEADLINE = 2.0
MIN_COUNT = 10
MAX_COUNT = 1_000


class Reader:
    """Delivers entries stream by stream, in order.

    After any error the groups are made where they are missing (Redis was flushed, restarted empty, failed
    over), what others left pending there is claimed, all shards catch up, and the own pending entries are
    read first: a reply that was lost on the way is only there.

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
        outage: Outage,
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
        self._block = min(block, LONGEST_BLOCK)
        self._size = ReadSize()
        self.connected = Availability()
        self._outage = outage
        self._refused = Outage(
            "redis.refused", "redis.accepted", "reading from the outbox until it works", level=logging.ERROR
        )

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
                    self._refused.failed(error)
                    await asyncio.sleep(PAUSE_AFTER_REFUSAL)
                except (RedisError, OSError) as error:
                    self._outage.failed(error)
                    self.connected.clear()
                    await asyncio.sleep(PAUSE_AFTER_FAILURE)
        finally:
            await self._reader.close()

    async def _read(self) -> None:
        streams = [*self._shards.streams, self._wake_stream]
        if not self.connected.is_set():
            async with asyncio.timeout(ADMIT_DEADLINE):
                await self._admit()
            await self._groups.join(streams)
            pending = await self._own_pending(streams)
            # What was published meanwhile may be gone; once, because the sweep looks while Redis is down.
            # And first: what others left pending may be answered, which the outbox knows.
            for owned in self._shards:
                owned.must_catch_up()
            self._pass_on(pending)
            self.connected.set()
            self._refused.worked()
        most = min(MAX_COUNT, max(MIN_COUNT, self._prefetch // len(streams)))
        count = self._size.count(len(streams), most)
        entries = await self._reader.read(streams, count=count, block=self._block)
        self._size.read(entries)
        self._pass_on(entries)
        self._outage.worked()

    async def _own_pending(self, streams: list[bytes]) -> list[StreamEntry]:
        """No more than was read ahead, by this runner or by those before it."""
        pending: list[StreamEntry] = []
        after = dict.fromkeys(streams, b"0")
        while after:
            entries = await self._reader.pending(after, count=self._size.count(len(after), MAX_COUNT))
            self._size.read(entries)
            pending += entries
            after = {entry.stream: entry.entry_id for entry in entries}
        return pending

    def _pass_on(self, entries: list[StreamEntry]) -> None:
        for entry in entries:
            owned = self._shards.reading(entry.stream)
            # Without an owner here it is the wake entry, or the shard was given up: its next owner claims it.
            if owned is not None:
                self._deliver(owned, entry)
