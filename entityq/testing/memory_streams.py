"""The chunks of streams as lists: what Postgres keeps of them for a client and a runner, without Postgres."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from entityq.chunk import Chunk
from entityq.codec import Limits
from entityq.runner.chunk_writer import Bounds, StreamPorts
from entityq.runner.chunks import NewChunks, Progress
from entityq.runner.request import Request
from entityq.runner.streams import Streams


class MemoryStreams:
    """On one event loop."""

    def __init__(self) -> None:
        self._chunks = defaultdict[int, list[Chunk]](list)
        self._more = defaultdict[int, asyncio.Future[bytes]](
            lambda: asyncio.get_running_loop().create_future()
        )

    def of_turns(self, waiting: Callable[[], AbstractContextManager[None]], limits: Limits) -> Streams:
        """Handlers are not held back: a test may send, and read when it is done."""
        ports = StreamPorts(self._store, self._progress, self._told, lambda _: waiting())
        return Streams(ports, limits, Bounds(ahead=2**31, ahead_bytes=2**62))

    def value(self, request_id: int, number: int) -> bytes | None:
        chunks = self._chunks[request_id]
        return chunks[number - 1].value if number <= len(chunks) else None

    def more(self, request_id: int) -> asyncio.Future[bytes]:
        """Done when there are more than now."""
        return self._more[request_id]

    async def _store(self, new: NewChunks) -> bool:
        self._chunks[new.request.request_id] += new.chunks
        return True

    async def _progress(self, request_id: int) -> Progress:
        chunks = self._chunks[request_id]
        return Progress(chunks[-1] if chunks else None)

    def _told(self, request: Request, chunks: Sequence[Chunk]) -> None:
        more = self._more.pop(request.request_id, None)
        if more is not None:
            more.set_result(chunks[-1].value)
