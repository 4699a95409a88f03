"""Waiting for replies: what the reply channel brings, and what the outbox says to those who hear nothing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from psycopg import Error

from entityq.client.read_schedule import ReadSchedule
from entityq.errors import Accepted, EntityQError, PayloadTooLarge, PersistenceError
from entityq.postgres.session import ConnectionLost
from entityq.redis.replies import MAX_INLINE, Pair
from entityq.reply import EXPIRED

# Seconds: reads that fall due within it go together. And how many replies one of them asks for.
TICK = 0.02
PAGE = 1_000

ReadReplies = Callable[[Sequence[int]], Awaitable[Mapping[int, bytes | None]]]

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Waiting:
    """`reply` becomes the encoded reply. A volatile request has only the channel.

    `accepted`: the outbox had it when the wait began, so if it has it no more, it has been removed.
    """

    request_id: int
    reply: asyncio.Future[bytes]
    persisted: bool
    accepted: bool = False


class Waiter:
    """All that wait in one client object. `run` belongs to its task group; without waiters it sleeps."""

    def __init__(self, read_replies: ReadReplies) -> None:
        self._read_replies = read_replies
        self._waiting: dict[int, list[Waiting]] = {}
        self._schedule = ReadSchedule()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._failing = False
        self._closed = False

    def __len__(self) -> int:
        """Requests that somebody waits for."""
        return len(self._waiting)

    def expect(self, request_id: int, *, persisted: bool = True, at_once: bool = False) -> Waiting:
        """Before the request is published; `at_once` when it was accepted before, and may have been answered."""
        waiting = Waiting(request_id, self._loop.create_future(), persisted, accepted=at_once)
        if self._closed:
            waiting.reply.set_exception(_closed(waiting))
            return waiting
        self._waiting.setdefault(request_id, []).append(waiting)
        if persisted:
            if self._schedule.next_due() is None or at_once:
                self._changed.set()
            self._schedule.add(request_id, self._loop.time())
            if at_once:
                self._schedule.hasten([request_id])
        return waiting

    def forget(self, waiting: Waiting) -> None:
        """Nobody waits for it any more."""
        others = self._waiting.get(waiting.request_id)
        if others is not None and waiting in others:
            others.remove(waiting)
            if not others:
                del self._waiting[waiting.request_id]

    def received(self, pairs: Iterable[Pair]) -> None:
        """From the channel; None is a reply that must be read."""
        for request_id, reply in pairs:
            if reply is not None:
                self._deliver(request_id, reply)
            elif request_id in self._waiting:
                self._read(request_id)

    def interrupted(self) -> None:
        """The channel may have missed something: everybody reads."""
        if self._waiting:
            self._schedule.hasten(self._waiting)
            self._changed.set()

    def close(self) -> None:
        """Who waits learns that nobody will look for the reply any more."""
        self._closed = True
        while self._waiting:
            _, others = self._waiting.popitem()
            for waiting in others:
                if not waiting.reply.done():
                    waiting.reply.set_exception(_closed(waiting))

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            await self._read_on()
        finally:
            self.close()

    async def _read_on(self) -> None:
        while True:
            due = self._schedule.next_due()
            if due is None:
                await self._changed.wait()
            elif due > self._loop.time():
                await self._sleep_until(due)
            self._changed.clear()
            wanted = list(self._schedule.due(self._loop.time() + TICK, self._waiting))
            for start in range(0, len(wanted), PAGE):
                await self._read_page(wanted[start : start + PAGE])

    async def _sleep_until(self, due: float) -> None:
        try:
            async with asyncio.timeout_at(due):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _read_page(self, request_ids: Sequence[int]) -> None:
        try:
            replies = await self._read_replies(request_ids)
        except (ConnectionLost, PersistenceError, Error) as error:
            if not self._failing:  # once per outage
                _log.warning("client.replies_unread: trying again until the callers' timeouts: %s", error)
            self._failing = True
            return
        self._failing = False
        for request_id in request_ids:
            reply = replies.get(request_id)
            if reply is not None:
                self._deliver(request_id, reply)
            elif request_id not in replies and self._all_accepted(request_id):
                self._deliver(request_id, EXPIRED)

    def _all_accepted(self, request_id: int) -> bool:
        return all(waiting.accepted for waiting in self._waiting.get(request_id, ()))

    def _deliver(self, request_id: int, reply: bytes) -> None:
        for waiting in self._waiting.pop(request_id, ()):
            if not waiting.reply.done():
                waiting.reply.set_result(reply)

    def _read(self, request_id: int) -> None:
        for waiting in self._waiting[request_id]:
            if not waiting.persisted and not waiting.reply.done():
                waiting.reply.set_exception(
                    PayloadTooLarge(
                        f"The reply to a volatile message has more than {MAX_INLINE:,} bytes",
                        request_id=request_id,
                        advice="Make the message persisted, or its reply smaller.",
                    )
                )
        self._schedule.hasten([request_id])
        self._changed.set()


def _closed(waiting: Waiting) -> EntityQError:
    return EntityQError(
        "The client that sent this request is closed",
        accepted=Accepted.YES if waiting.persisted else Accepted.NO,
        request_id=waiting.request_id,
        advice="Repeat it with its primary key, or look for the reply with `entityq result`.",
    )
