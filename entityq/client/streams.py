"""Reading streams: what the reply channel brings, and the rest from the chunks that are stored."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from psycopg import Error

from entityq.call import Call
from entityq.chunk import Chunk, decode_chunk, is_chunk
from entityq.client.reply_reader import ReplyReader
from entityq.client.waiter import Waiter, Waiting
from entityq.codec import Limits
from entityq.errors import Accepted, EntityQError, PersistenceError, ReplyExpired
from entityq.postgres.chunks import acknowledge_chunk, read_chunks
from entityq.postgres.session import ConnectionLost, Session
from entityq.redis.replies import Pair
from entityq.reply import EXPIRED, Outcome, decode_reply

# Values that were told and not asked for yet: what is beyond is read when it is wanted.
MAX_KEPT = 200

# Acknowledged together: so many values or bytes, or what there is after so many seconds without another one.
ACKNOWLEDGE = 25
ACKNOWLEDGE_BYTES = 1024**2
IDLE = 0.5

# Seconds between two looks at the table, while nothing is told: more and more.
FIRST_LOOK = 0.05
LONGEST_PAUSE = 1.0

_FAILURES = (ConnectionLost, PersistenceError, Error)

_log = logging.getLogger(__name__)


class _Inbox:
    """What one reader was told behind `number`, the last value that it has. `missed`: the table may have more."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.values: dict[int, bytes] = {}
        self.missed = True
        self.woken = asyncio.Event()

    def put(self, chunk: Chunk) -> None:
        if chunk.number > self.number and len(self.values) < MAX_KEPT:
            self.values[chunk.number] = chunk.value
        self.woken.set()

    def take(self) -> bytes | None:
        value = self.values.pop(self.number + 1, None)
        if value is not None:
            self.number += 1
        return value

    def miss(self) -> None:
        self.missed = True
        self.woken.set()


class Streams:
    """Of one client object."""

    def __init__(
        self, waiter: Waiter, reader: ReplyReader, reads: Session, *, namespace: str, limits: Limits
    ) -> None:
        self.waiter = waiter
        self.reader = reader
        self.limits = limits
        self._reads = reads
        self._namespace = namespace
        self._inboxes: dict[int, list[_Inbox]] = {}

    def received(self, pairs: Iterable[Pair]) -> None:
        """From the channel; what is no chunk is for those who wait for replies."""
        replies: list[Pair] = []
        for request_id, encoded in pairs:
            if encoded is None or not is_chunk(encoded):
                replies.append((request_id, encoded))
            inboxes = self._inboxes.get(request_id, ())
            if encoded is None:  # of a value, or of the reply: nobody says which
                for inbox in inboxes:
                    inbox.miss()
            elif inboxes and is_chunk(encoded):
                self._put(inboxes, encoded)
        self.waiter.received(replies)

    def interrupted(self) -> None:
        """The channel may have missed something."""
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.miss()
        self.waiter.interrupted()

    async def values(
        self, call: Call, request_id: int, after: int, patience: float
    ) -> AsyncGenerator[Any, None]:
        """Of an accepted request, but for the first `after`; `patience` seconds are waited for each.

        Raises what the reply is, where it is no success, SendTimeout and the like, and ReplyExpired.
        """
        schema = call.message.values
        inbox = _Inbox(after)
        self._inboxes.setdefault(request_id, []).append(inbox)
        waiting = self.waiter.expect(request_id, at_once=True)
        waiting.reply.add_done_callback(lambda _: inbox.woken.set())
        reading = _Reading(self, call, waiting, inbox, patience)
        try:
            while (value := await reading.next()) is not None:
                yield schema.decode(value, self.limits)
                await reading.had(len(value))
        finally:
            self.waiter.forget(waiting)
            self._leave(request_id, inbox)

    async def page(self, request_id: int, after: int) -> list[Chunk]:
        return await self._reads.run(lambda connection: read_chunks(connection, request_id, after))

    async def acknowledge(self, request_id: int, number: int) -> None:
        """A failure only lets the handler wait: the next one says it, too."""
        try:
            await self._reads.run(
                lambda connection: acknowledge_chunk(connection, self._namespace, request_id, number)
            )
        except _FAILURES as error:
            _log.warning("client.chunk_unacknowledged request=%s number=%s: %s", request_id, number, error)

    def _put(self, inboxes: Iterable[_Inbox], encoded: bytes) -> None:
        try:
            chunk = decode_chunk(encoded)
        except EntityQError as error:
            _log.warning("client.chunk_ignored: %s", error)
            return
        for inbox in inboxes:
            inbox.put(chunk)

    def _leave(self, request_id: int, inbox: _Inbox) -> None:
        inboxes = self._inboxes[request_id]
        inboxes.remove(inbox)
        if not inboxes:
            del self._inboxes[request_id]


class _Reading:
    """One walk through a stream."""

    def __init__(
        self, streams: Streams, call: Call, waiting: Waiting, inbox: _Inbox, patience: float
    ) -> None:
        self._streams = streams
        self._call = call
        self._waiting = waiting
        self._inbox = inbox
        self._patience = patience
        self._acknowledged = inbox.number
        self._unacknowledged_bytes = 0
        self._pause = FIRST_LOOK
        self._clock = asyncio.get_running_loop().time

    async def next(self) -> bytes | None:
        """The packed value of the next number, None at the end."""
        deadline = self._clock() + self._patience
        while True:
            value = self._inbox.take()
            if value is not None:
                self._pause = FIRST_LOOK
                return value
            reply = self._waiting.reply
            if reply.done() and reply.exception() is not None:
                reply.result()  # the client is closed
            if self._is_over():
                return None
            if self._inbox.missed or self._inbox.values or reply.done():
                answered = reply.done()
                if not await self._read(deadline) and answered:
                    self._raise_end()
            else:
                await self._listen(deadline)

    async def had(self, size: int) -> None:
        """The caller asks for the next one."""
        self._unacknowledged_bytes += size
        if (
            self._inbox.number - self._acknowledged >= ACKNOWLEDGE
            or self._unacknowledged_bytes >= ACKNOWLEDGE_BYTES
        ):
            await self._acknowledge()

    async def _acknowledge(self) -> None:
        self._acknowledged, self._unacknowledged_bytes = self._inbox.number, 0
        if not self._waiting.reply.done():
            await self._streams.acknowledge(self._waiting.request_id, self._inbox.number)

    async def _read(self, deadline: float) -> bool:
        """Whether the table has more."""
        inbox = self._inbox
        inbox.missed, later = False, bool(inbox.values)
        try:
            page = await self._streams.page(self._waiting.request_id, self._inbox.number)
        except _FAILURES as error:
            _log.warning("client.chunks_unread: trying again until the caller's timeout: %s", error)
            inbox.missed = True
            await self._sleep(deadline)
            return True
        for chunk in page:
            inbox.values[chunk.number] = chunk.value
        if later and inbox.number + 1 not in inbox.values:
            raise self._gone()  # what was told before the read is stored, and so was all before it
        return bool(page)

    async def _listen(self, deadline: float) -> None:
        """Until something is told, or it is time to look."""
        began = self._clock()
        idle = began + IDLE if self._inbox.number > self._acknowledged else deadline
        self._inbox.woken.clear()
        if await self._woken(min(began + self._pause, idle, deadline)):
            return
        if self._clock() >= deadline:
            raise await self._streams.reader.silence(self._call, self._waiting.request_id, self._patience)
        if self._clock() >= idle:
            await self._acknowledge()
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._inbox.missed = True

    async def _sleep(self, deadline: float) -> None:
        self._inbox.woken.clear()
        if self._clock() >= deadline:
            raise await self._streams.reader.silence(self._call, self._waiting.request_id, self._patience)
        await self._woken(min(self._clock() + self._pause, deadline))
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def _woken(self, until: float) -> bool:
        try:
            async with asyncio.timeout_at(until):
                await self._inbox.woken.wait()
        except TimeoutError:
            return False
        return True

    # ----- the end

    def _is_over(self) -> bool:
        """Whether all of a stream that has ended well was given out: then nothing need be read."""
        reply = self._waiting.reply
        if not reply.done() or reply.exception() is not None or reply.result() == EXPIRED:
            return False
        request_id = self._waiting.request_id
        if decode_reply(request_id, reply.result()).outcome is not Outcome.SUCCESS:
            return False
        return bool(self._inbox.number >= self._streams.reader.result(self._call, request_id, reply.result()))

    def _raise_end(self) -> None:
        """There are no more values, and the reply is there. Raises what it is, ReplyExpired where values are gone."""
        self._streams.reader.result(self._call, self._waiting.request_id, self._waiting.reply.result())
        raise self._gone()

    def _gone(self) -> ReplyExpired:
        return ReplyExpired(
            f"The values of {self._call.address} for {self._call.message.name} are no longer kept",
            accepted=Accepted.YES,
            request_id=self._waiting.request_id,
            advice="Read streams within the time that replies are kept (keep).",
        )
