"""What follows a commit: the reply to who waits, the acknowledgement, the outgoing requests.

Natural batching: what is committed while one announcement is under way goes with the next. All of it is
only a shortcut. A reply that is lost here is read from the outbox, an entry that is not acknowledged is
dropped when it is read again, a request that is not published is found by its shard's sweep.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from redis.exceptions import RedisError

from entityq.runner.commit import SentRow
from entityq.runner.owned_shard import OwnedShard

log = logging.getLogger(__name__)

Replies = Mapping[int, Sequence[tuple[int, bytes]]]
Acknowledgements = Mapping[bytes, Sequence[bytes]]


class Announcer:
    """One loop per runner.

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
        self._shards_changed = False
        self._replies: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self._entries: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._sent: dict[int, tuple[OwnedShard, list[SentRow]]] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def reply(self, client: int, request_id: int, encoded: bytes) -> None:
        self._replies[client].append((request_id, encoded))
        self._wake()

    def entry(self, stream: bytes, entry_id: bytes) -> None:
        self._entries[stream].append(entry_id)
        self._wake()

    def requests(self, owned: OwnedShard, rows: Sequence[SentRow]) -> None:
        self._sent.setdefault(owned.shard_id, (owned, []))[1].extend(rows)
        self._wake()

    def shards_changed(self) -> None:
        """The reader is to be woken: it blocks on the streams of the shards as they were."""
        self._shards_changed = True
        self._wake()

    def _wake(self) -> None:
        self._work.set()
        self._idle.clear()

    async def run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            await self._announce()
            if not self._work.is_set():
                self._idle.set()

    async def drain(self, deadline: float) -> None:
        """Wait until everything was announced, at most `deadline` seconds."""
        try:
            async with asyncio.timeout(deadline):
                await self._idle.wait()
        except TimeoutError:
            log.warning("announcer.not_drained: replies are read from the outbox instead")

    async def _announce(self) -> None:
        replies, self._replies = self._replies, defaultdict(list)
        entries, self._entries = self._entries, defaultdict(list)
        sent, self._sent = self._sent, {}
        steps: list[Callable[[], Awaitable[None]]] = [
            partial(self._publish_requests, owned, rows) for owned, rows in sent.values()
        ]
        if self._shards_changed:
            self._shards_changed = False
            steps.append(self._wake_reader)
        if replies:
            steps.append(partial(self._publish_replies, replies))
        if entries:
            steps.append(partial(self._acknowledge, entries))
        for step in steps:
            try:
                await step()
            except (RedisError, OSError, TimeoutError) as error:
                log.debug("announcer.failed: %r", error)
