"""What follows a commit: the reply to who waits, the acknowledgement, the outgoing requests.

Natural batching: what is committed while one announcement is under way goes with the next. All of it is
only a shortcut. A reply that is lost here is read from the outbox, an entry that could not be acknowledged
goes with the next ones, a request that is not published is told to its owner through Postgres.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from redis.exceptions import RedisError

from entityq.redis.breaker import COOL_DOWN, Breaker
from entityq.runner.commit import SentRow
from entityq.runner.owned_shard import OwnedShard

log = logging.getLogger(__name__)

# Entries that wait for Redis to take their acknowledgements.
MAX_KEPT = 10_000

Replies = Mapping[int, Sequence[tuple[int, bytes]]]
Acknowledgements = Mapping[bytes, Sequence[bytes]]


class _Loop:
    """Does what was added since the last time, whenever something was added."""

    def __init__(self, step: Callable[[], Awaitable[None]]) -> None:
        self._step = step
        self._wanted = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def wake(self) -> None:
        self._wanted.set()
        self.idle.clear()

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._step()
            if not self._wanted.is_set():
                self.idle.set()


class Announcer:
    """Three loops per runner, so that a Redis that answers late delays each of them for itself.

    Args:
        publish_replies: replies by client, as (request id, encoded reply).
        acknowledge: entry ids by stream.
        publish_requests: the outgoing requests of one shard's turns, in outbox order.
        wake_reader: makes the reader read the streams as they are now.
    """

    def __init__(
        self,
        *,
        publish_replies: Callable[[Replies], Awaitable[None]],
        acknowledge: Callable[[Acknowledgements], Awaitable[None]],
        publish_requests: Callable[[OwnedShard, Sequence[SentRow]], Awaitable[None]],
        wake_reader: Callable[[], Awaitable[None]],
    ) -> None:
        self._publish_replies = publish_replies
        self._acknowledge = acknowledge
        self._publish_requests = publish_requests
        self._wake_reader = wake_reader
        self._replying = Breaker(name="redis.reply", instead="callers read the outbox meanwhile")
        self._acknowledging = Breaker(name="redis.acknowledge", instead="done again when it works")
        self._shards_changed = False
        self._replies: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self._entries: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._sent: dict[int, tuple[OwnedShard, list[SentRow]]] = {}
        self._request_loop = _Loop(self._announce_requests)
        self._reply_loop = _Loop(self._announce_replies)
        self._entry_loop = _Loop(self._announce_entries)

    def reply(self, client: int, request_id: int, encoded: bytes) -> None:
        self._replies[client].append((request_id, encoded))
        self._reply_loop.wake()

    def entry(self, stream: bytes, entry_id: bytes) -> None:
        self._entries[stream].append(entry_id)
        self._entry_loop.wake()

    def requests(self, owned: OwnedShard, rows: Sequence[SentRow]) -> None:
        self._sent.setdefault(owned.shard_id, (owned, []))[1].extend(rows)
        self._request_loop.wake()

    def shards_changed(self) -> None:
        """The reader is to be woken: it blocks on the streams of the shards as they were."""
        self._shards_changed = True
        self._request_loop.wake()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._request_loop.run(), name="announcer requests")
            group.create_task(self._reply_loop.run(), name="announcer replies")
            group.create_task(self._entry_loop.run(), name="announcer entries")

    async def drain(self, deadline: float) -> None:
        """Wait until everything was announced, at most `deadline` seconds."""
        try:
            async with asyncio.timeout(deadline):
                for loop in (self._request_loop, self._reply_loop, self._entry_loop):
                    await loop.idle.wait()
        except TimeoutError:
            log.warning("announcer.not_drained: replies are read from the outbox instead")

    async def _announce_requests(self) -> None:
        sent, self._sent = self._sent, {}
        for owned, rows in sent.values():
            await self._publish_requests(owned, rows)
        if self._shards_changed:
            self._shards_changed = False
            try:
                await self._wake_reader()
            except (RedisError, OSError) as error:
                log.debug("announcer.reader_not_woken: %r; its block ends soon", error)

    async def _announce_replies(self) -> None:
        replies, self._replies = self._replies, defaultdict(list)
        # Tried at any time, because the reply to a volatile message is nowhere else.
        await _attempt(self._replying, self._publish_replies(replies))

    async def _announce_entries(self) -> None:
        if not self._acknowledging.closed:
            asyncio.get_running_loop().call_later(COOL_DOWN, self._entry_loop.wake)
            return
        entries, self._entries = self._entries, defaultdict(list)
        if await _attempt(self._acknowledging, self._acknowledge(entries)):
            return
        # Again in a moment. Of more than that the reader gets what is left when it reads its own pending
        # entries again.
        if sum(map(len, entries.values())) < MAX_KEPT:
            for stream, entry_ids in entries.items():
                self._entries[stream][:0] = entry_ids
            asyncio.get_running_loop().call_later(COOL_DOWN, self._entry_loop.wake)


async def _attempt(breaker: Breaker, step: Awaitable[None]) -> bool:
    try:
        await step
    except (RedisError, OSError) as error:
        breaker.failed(error)
        return False
    breaker.succeeded()
    return True
