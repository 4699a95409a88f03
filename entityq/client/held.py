"""Sends whose key somebody else is inserting right now, in a transaction that is not committed yet.

Each such key waits in a connection of its own, so that the batches go on without it; further sends of the
same key queue behind the first.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count

from psycopg import Error
from psycopg.errors import LockNotAvailable

from entityq.client.send import Acceptance, Held, Outcome, Send
from entityq.errors import Accepted, PersistenceError, SendTimeout
from entityq.postgres.connect import Connection
from entityq.postgres.outbox import set_lock_timeout
from entityq.postgres.session import ConnectionLost, Session
from entityq.retry import RetryPolicy, next_delay

# Keys that wait at the same time; more wait for these.
MAX_CONNECTIONS = 4

# Seconds that a statement gets beyond what it may wait for the lock.
GRACE = 5.0


@dataclass(slots=True, eq=False)
class _Waiting:
    send: Send
    outcome: asyncio.Future[Acceptance]


class HeldSends:
    """`insert` settles one send on the session that it is given; `abandon` makes the error of one whose tries
    have failed."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        insert: Callable[[Session, Send], Awaitable[Outcome]],
        abandon: Callable[[Send, Exception], PersistenceError],
        tasks: asyncio.TaskGroup,
        policy: RetryPolicy,
    ) -> None:
        self._connect = connect
        self._insert = insert
        self._abandon = abandon
        self._tasks = tasks
        self._policy = policy
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._queues: dict[bytes, deque[_Waiting]] = {}

    def __contains__(self, send: Send) -> bool:
        """Whether the send's key is held."""
        return send.request.key_digest in self._queues

    def hold(self, send: Send, digest: bytes) -> Held:
        outcome: asyncio.Future[Acceptance] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(send, outcome)
        if digest in self._queues:
            self._queues[digest].append(waiting)
        else:
            queue = self._queues[digest] = deque([waiting])
            name = f"entityq held request {send.request.request_id}"
            self._tasks.create_task(self._work(digest, queue), name=name)
        return Held(outcome)

    async def _work(self, digest: bytes, queue: deque[_Waiting]) -> None:
        try:
            async with self._slots:
                while queue:
                    waiting = queue[0]
                    if not waiting.outcome.cancelled():
                        _resolve(waiting.outcome, await self._settle(waiting.send))
                    queue.popleft()
        finally:
            # Also when cancelled: nobody may wait for what nobody works on.
            del self._queues[digest]
            for waiting in queue:
                closed = ConnectionLost("the client was closed")
                _resolve(waiting.outcome, self._abandon(waiting.send, closed))

    async def _settle(self, send: Send) -> Outcome:
        clock = asyncio.get_running_loop().time
        began = clock()
        for attempt in count(1):
            try:
                return await self._insert_patiently(send, max(0.0, send.deadline - clock()))
            except LockNotAvailable as error:
                return self._abandon(send, error) if send.lost else _undecided(send)
            except (ConnectionLost, PersistenceError, Error) as error:
                pause = next_delay(self._policy, attempt, clock() - began, random.random)
                if pause is None or clock() + pause > send.deadline:
                    return self._abandon(send, error)
            await asyncio.sleep(pause)
        raise AssertionError("count() does not end")

    async def _insert_patiently(self, send: Send, patience: float) -> Outcome:
        session = Session(self._connect, deadline=patience + GRACE)
        try:
            await session.run(lambda connection: set_lock_timeout(connection, patience))
            return await self._insert(session, send)
        finally:
            await session.close()


def _undecided(send: Send) -> SendTimeout:
    return SendTimeout(
        f"Somebody else was inserting a request to {send.request.address} with the primary key "
        f"{send.call.primary_key!r} and did not commit in time",
        accepted=Accepted.NO,
        request_id=send.request.request_id,
        advice="Send it again, with the same key.",
    )


def _resolve(future: asyncio.Future[Acceptance], outcome: Outcome) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    elif isinstance(outcome, Acceptance):
        future.set_result(outcome)
