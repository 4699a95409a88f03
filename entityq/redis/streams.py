"""The sending half of the streams: requests are added, pipelined, under a deadline."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from entityq.entry import ENVELOPE, ORDER

# Seconds. Publishing is a shortcut: whoever waits longer for it had better read the outbox.
PUBLISH_DEADLINE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """One entry for one stream; `order` None: a volatile request."""

    stream: bytes
    envelope: bytes
    order: bytes | None = None


class Streams:
    """Adds entries to streams that are trimmed, roughly, to `length`."""

    def __init__(self, redis: Redis, *, length: int, deadline: float = PUBLISH_DEADLINE) -> None:
        self._redis = redis
        self._length = str(length).encode()
        self._deadline = deadline

    async def add(self, additions: Sequence[Addition]) -> None:
        """In one round trip, in order. Raises RedisError, OSError or TimeoutError: some may be there."""
        pipeline: Any = self._redis.pipeline(transaction=False)
        for entry in additions:
            fields = (ENVELOPE, entry.envelope)
            if entry.order is not None:
                fields += (ORDER, entry.order)
            pipeline.execute_command("XADD", entry.stream, "MAXLEN", "~", self._length, "*", *fields)
        async with asyncio.timeout(self._deadline):
            await pipeline.execute()
