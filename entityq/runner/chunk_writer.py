"""The values that the handler of one turn yields: numbered, stored in order, told to callers, and held back by them.

The handler goes on while its last values are being stored; what was yielded during one statement goes with the next.
A value is told only after it is stored, so that no caller ever has one that a next attempt would not go on from.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from psycopg import Error as PostgresError

from entityq.batching import BatcherClosed
from entityq.chunk import Chunk
from entityq.codec import Limits
from entityq.errors import PayloadTooLarge
from entityq.postgres.pinned_connection import LeaseLost
from entityq.runner.chunks import NewChunks, Progress
from entityq.runner.commit import NotApplied, Tenure
from entityq.runner.request import Request
from entityq.runner.tasks import end
from entityq.runner.turn_signals import Suspended
from entityq.schema import ValueSchema

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one stream.

    ahead, ahead_bytes: how far the handler may be ahead of the callers' acknowledgements.
    patience: seconds without one after which nobody is thought to read, and the handler goes on.
    chunks: how many there are at most.
    """

    ahead: int = 100
    ahead_bytes: int = 4 * 1024**2
    patience: float = 30.0
    chunks: int = 100_000


BOUNDS = Bounds()


class ChunksLost(Exception):
    """Values could not be stored, which is not the handler's fault: its turn ends, and is not applied."""

    def __init__(self, reason: NotApplied | PostgresError | LeaseLost | BatcherClosed) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True, slots=True)
class StreamPorts:
    """What a stream needs of its runner, or of entityq.testing.

    store: whether the chunks are stored; raises psycopg.Error, LeaseLost and BatcherClosed.
    progress: how far the stream of a request has come; raises the same.
    tell: the callers of the request get these chunks.
    waiting: entered while a turn waits for its callers: it then holds no place that others may need.
    """

    store: Callable[[NewChunks], Awaitable[bool]]
    progress: Callable[[int], Awaitable[Progress]]
    tell: Callable[[Request, Sequence[Chunk]], None]
    waiting: Callable[[Request], AbstractContextManager[None]]


class ChunkWriter:
    """Of one turn. `begin` before the handler, then `collect`."""

    def __init__(
        self,
        ports: StreamPorts,
        request: Request,
        tenure: Tenure,
        *,
        schema: ValueSchema,
        limits: Limits,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self.last: Any = None
        self._ports = ports
        self._request = request
        self._tenure = tenure
        self._schema = schema
        self._limits = limits
        self._bounds = bounds
        self._number = 0
        self._acknowledged = 0
        self._unread = False
        # Sizes of what was yielded in this attempt and is not acknowledged, by number.
        self._sizes = deque[tuple[int, int]]()
        self._ahead_bytes = 0
        self._new: list[Chunk] = []
        self._wanted = asyncio.Event()
        self._changed = asyncio.Event()
        self._lost: ChunksLost | None = None

    async def begin(self) -> None:
        """Finds out where earlier attempts have come to. Raises ChunksLost."""
        progress = await self._progress()
        if progress.last is not None:
            self._number = progress.last.number
            self.last = self._schema.decode(progress.last.value, self._limits)
        self.acknowledged(progress.acknowledged)

    async def collect(self, values: AsyncGenerator[Any, None]) -> int:
        """Takes all values; how many the stream has, those of earlier attempts included.

        Raises what the handler raises, MalformedMessage and PayloadTooLarge for a value that does not fit, after
        what it has yielded before is stored, and ChunksLost.
        """
        storing = asyncio.create_task(self._store_all(), name=f"entityq chunks {self._request.request_id}")
        try:
            try:
                async with aclosing(values):
                    async for value in values:
                        await self._add(self._schema.encode(value, self._limits))
            except (Exception, Suspended):
                await self._until(self._all_stored)
                raise
            await self._until(self._all_stored)
        finally:
            await end(storing)
        return self._number

    def acknowledged(self, number: int) -> None:
        """Callers have had all up to this one."""
        if number <= self._acknowledged:
            return
        self._acknowledged = number
        self._unread = False
        while self._sizes and self._sizes[0][0] <= number:
            self._ahead_bytes -= self._sizes.popleft()[1]
        self._changed.set()

    async def _add(self, value: bytes) -> None:
        if self._number >= self._bounds.chunks:
            raise PayloadTooLarge(
                f"The stream of {self._request.envelope.address} has more than {self._bounds.chunks:,} values",
                request_id=self._request.request_id,
                advice="Stream in parts, each with a request of its own.",
            )
        self._number += 1
        self._sizes.append((self._number, len(value)))
        self._ahead_bytes += len(value)
        self._new.append(Chunk(self._number, value))
        self._wanted.set()
        await self._until(self._stored_enough)
        if not self._may_go_on():
            with self._ports.waiting(self._request):
                await self._wait_for_callers()

    # ----- what the handler waits for

    def _all_stored(self) -> bool:
        return not self._new

    def _stored_enough(self) -> bool:
        return len(self._new) < self._bounds.ahead

    def _more_than(self, acknowledged: int) -> bool:
        return self._acknowledged > acknowledged

    def _may_go_on(self) -> bool:
        return self._unread or (
            self._number - self._acknowledged < self._bounds.ahead
            and self._ahead_bytes < self._bounds.ahead_bytes
        )

    async def _until(self, ready: Callable[[], bool]) -> None:
        while self._lost is None and not ready():
            self._changed.clear()
            await self._changed.wait()
        if self._lost is not None:
            raise self._lost

    async def _wait_for_callers(self) -> None:
        while not self._may_go_on():
            more = partial(self._more_than, self._acknowledged)
            try:
                async with asyncio.timeout(self._bounds.patience):
                    await self._until(more)
            except TimeoutError:
                await self._look_for_callers()

    async def _look_for_callers(self) -> None:
        """A notification can have been missed."""
        before = self._acknowledged
        self.acknowledged((await self._progress()).acknowledged)
        if self._acknowledged == before:
            self._unread = True
            log.info(
                "stream.unread request=%s entity=%s: it is stored for whoever comes",
                self._request.request_id,
                self._request.envelope.address,
            )

    # ----- storing

    async def _store_all(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                while self._new:
                    await self._store(tuple(self._new))
        except (PostgresError, LeaseLost, BatcherClosed) as error:
            self._lost = ChunksLost(error)
        except ChunksLost as lost:
            self._lost = lost
        self._changed.set()

    async def _store(self, chunks: Sequence[Chunk]) -> None:
        if not await self._ports.store(NewChunks(self._tenure, self._request, chunks)):
            raise ChunksLost(NotApplied("the request is answered, or its lease is gone"))
        del self._new[: len(chunks)]
        self._ports.tell(self._request, chunks)
        self._changed.set()

    async def _progress(self) -> Progress:
        try:
            return await self._ports.progress(self._request.request_id)
        except (PostgresError, LeaseLost, BatcherClosed) as error:
            raise ChunksLost(error) from error
