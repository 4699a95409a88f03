"""Natural batching: what arrives while one flush is under way goes with the next. There is no timer."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Flush = Callable[[Sequence[T]], Awaitable[Sequence[R | BaseException]]]


class BatcherClosed(Exception):
    """The item has no outcome; `started` says whether a flush already had it."""

    def __init__(self, *, started: bool) -> None:
        super().__init__("closed in the middle of the flush" if started else "closed before the flush")
        self.started = started


@dataclass(slots=True, eq=False)
class _Pending(Generic[T, R]):
    item: T
    size: int
    outcome: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Flushes items in the order of `submit`, one flush at a time; `run` belongs to a task group.

    `flush` returns one outcome per item, in order: a value, or an exception, which is raised at the item's
    submitter. An exception of `flush` itself is raised at all of them.
    """

    def __init__(self, flush: Flush[T, R], *, max_items: int, max_size: int) -> None:
        """`max_size` bounds the sum of the sizes in a flush; a larger item goes alone."""
        self._flush = flush
        self._max_items = max_items
        self._max_size = max_size
        self._queue: deque[_Pending[T, R]] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    def submit(self, item: T, size: int) -> asyncio.Future[R]:
        """Await the outcome. Cancelling (or settling) it takes the item out, unless a flush has it already.

        It raises BatcherClosed when the batcher is closed, now or later.
        """
        outcome: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if self._closed:
            outcome.set_exception(BatcherClosed(started=False))
        else:
            self._queue.append(_Pending(item, size, outcome))
            self._arrived.set()
        return outcome

    async def run(self) -> None:
        """Until `close`, after which the flush under way still ends, or until it is cancelled."""
        try:
            while not self._closed:
                await self._arrived.wait()
                self._arrived.clear()
                while batch := self._next_batch():
                    await self._settle(batch)
        finally:
            self.close()

    def close(self) -> None:
        """What waits fails now, and so does what is submitted later; nothing is lost in silence."""
        self._closed = True
        self._arrived.set()
        while self._queue:
            _fail([self._queue.popleft()], BatcherClosed(started=False))

    def _next_batch(self) -> list[_Pending[T, R]]:
        batch: list[_Pending[T, R]] = []
        room = self._max_size
        while self._queue and len(batch) < self._max_items:
            pending = self._queue[0]
            if not pending.outcome.done():
                if batch and pending.size > room:
                    break
                room -= pending.size
                batch.append(pending)
            self._queue.popleft()
        return batch

    async def _settle(self, batch: list[_Pending[T, R]]) -> None:
        try:
            outcomes = await self._flush([pending.item for pending in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"a flush of {len(batch)} items returned {len(outcomes)} outcomes")
        except Exception as error:  # noqa: BLE001 - raised at every submitter
            _fail(batch, error)
        except BaseException:
            _fail(batch, BatcherClosed(started=True))
            raise
        else:
            for pending, outcome in zip(batch, outcomes, strict=True):
                _resolve(pending.outcome, outcome)


def _fail(batch: Sequence[_Pending[T, R]], error: BaseException) -> None:
    for pending in batch:
        _resolve(pending.outcome, error)


def _resolve(future: asyncio.Future[R], outcome: R | BaseException) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
