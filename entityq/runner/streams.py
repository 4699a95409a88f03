"""The streams of one incarnation that are being written, and what is heard of their callers."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from entityq.codec import Limits
from entityq.definition import MessageDefinition
from entityq.postgres.chunks import parse_acknowledgement
from entityq.runner.chunk_writer import BOUNDS, Bounds, ChunkWriter, StreamPorts
from entityq.runner.commit import Tenure
from entityq.runner.request import Request

log = logging.getLogger(__name__)


class Streams:
    """`limits` bounds each value."""

    def __init__(self, ports: StreamPorts, limits: Limits, bounds: Bounds = BOUNDS) -> None:
        self._ports = ports
        self._limits = limits
        self._bounds = bounds
        self._writers: dict[int, ChunkWriter] = {}

    @asynccontextmanager
    async def turn(
        self, request: Request, tenure: Tenure, message: MessageDefinition
    ) -> AsyncGenerator[ChunkWriter | None]:
        """None for a message with one reply. Raises ChunksLost."""
        if message.chunk is None:
            yield None
            return
        writer = ChunkWriter(
            self._ports, request, tenure, schema=message.chunk, limits=self._limits, bounds=self._bounds
        )
        # What is heard from now on cannot be older than what `begin` reads.
        self._writers[request.request_id] = writer
        try:
            await writer.begin()
            yield writer
        finally:
            del self._writers[request.request_id]

    def heard(self, payload: str) -> None:
        """A notification: most are of other runners' streams."""
        try:
            request_id, number = parse_acknowledgement(payload)
        except ValueError:
            log.warning("streams.ignored a notification that is not ours")
            return
        self.acknowledged(request_id, number)

    def acknowledged(self, request_id: int, number: int) -> None:
        """Callers have had all chunks up to this one."""
        writer = self._writers.get(request_id)
        if writer is not None:
            writer.acknowledged(number)
