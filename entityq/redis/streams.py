"""The sending half of the streams: requests are added, pipelined, under a deadline."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from entityq.entry import ENVELOPE, ORDER
from entityq.redis.deadline import deadline

# Seconds. Publishing is a shortcut: whoever waits longer for it had better read the outbox.
PUBLISH_DEADLINE = 0.1
DELETE_DEADLINE = 5.0
DELETED_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """One entry for one stream; `order` None: a volatile request."""

    stream: bytes
    envelope: bytes
    order: bytes | None = None


class Streams:
    """Adds entries to streams that are trimmed, roughly, to `length`."""

    def __init__(self, redis: Redis, *, length: int, seconds: float = PUBLISH_DEADLINE) -> None:
        self._pool: Any = redis.connection_pool  # its methods are not annotated
        self._length = str(length).encode()
        self._seconds = seconds

    async def add(self, additions: Sequence[Addition]) -> None:
        """In one round trip, in order. Raises RedisError, OSError or TimeoutError: some may be there.

        Written to the connection itself: a pipeline of redis-py takes four times as long for the same.
        """
        commands = b"".join([self._command(addition) for addition in additions])
        async with deadline(self._seconds):
            connection = await self._pool.get_connection()
            try:
                await connection.send_packed_command([commands])
                error: ResponseError | None = None
                for _ in additions:
                    try:
                        await connection.read_response(timeout=math.inf)
                    except ResponseError as refused:
                        error = error or refused
            finally:
                # After any other error, a cancellation included, redis-py has closed it: what was not read is
                # not taken for the replies to the next batch.
                await self._pool.release(connection)
        if error is not None:
            raise error

    def _command(self, entry: Addition) -> bytes:
        head = (b"XADD", entry.stream, b"MAXLEN", b"~", self._length, b"*", ENVELOPE, entry.envelope)
        return pack_command(head if entry.order is None else (*head, ORDER, entry.order))


async def delete_streams(redis: Redis, streams: Sequence[bytes]) -> None:
    """With their consumer groups. Raises RedisError, OSError or TimeoutError: some may still be there."""
    client: Any = redis  # its methods are not annotated
    for start in range(0, len(streams), DELETED_AT_ONCE):
        async with asyncio.timeout(DELETE_DEADLINE):
            await client.unlink(*streams[start : start + DELETED_AT_ONCE])
