"""The reply channels: one for each client object that waits, published to by runners after each commit.

Frozen: a message is a msgpack array of version (1) and [[request id, encoded reply or nil], ...]. nil stands
for a reply that is too large to be sent to everybody who may listen: it is in the outbox.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from msgpack import packb, unpackb
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from entityq.redis.deadline import deadline
from entityq.redis.keys import Keys
from entityq.redis.pipelines import execute
from entityq.redis.subscription import listen

VERSION = 1
# Bytes. A slow subscriber is disconnected when 8 MiB wait for it for a minute.
MAX_INLINE = 256 * 1024
MAX_MESSAGE = 1024 * 1024

# Seconds.
PUBLISH_DEADLINE = 0.1
_RETRY = 0.1

Pair = tuple[int, bytes | None]

_log = logging.getLogger(__name__)


def encode_replies(replies: Sequence[tuple[int, bytes]]) -> list[bytes]:
    """The messages for one client."""
    messages: list[bytes] = []
    pairs: list[Pair] = []
    size = 0
    for request_id, reply in replies:
        if size + len(reply) > MAX_MESSAGE:
            messages.append(packb([VERSION, pairs]))
            pairs, size = [], 0
        inline = len(reply) <= MAX_INLINE
        pairs.append((request_id, reply if inline else None))
        size += len(reply) if inline else 0
    messages.append(packb([VERSION, pairs]))
    return messages


def decode_replies(data: bytes) -> list[Pair]:
    """Raises ValueError for what is no message of this version."""
    try:
        value = unpackb(data)
    except Exception as error:  # noqa: BLE001 - whatever msgpack says about bytes that anybody can publish
        raise ValueError(f"a reply message cannot be decoded: {error!r}") from None
    match value:
        case [1, [*pairs]]:
            return [_pair(pair) for pair in cast("list[object]", pairs)]
        case _:
            raise ValueError("a reply message is not of version 1")


def _pair(pair: object) -> Pair:
    match pair:
        case [int(request_id), bytes() | None as reply]:
            return request_id, reply
        case _:
            raise ValueError("a reply message holds something that is no reply")


class ReplyPublisher:
    """Tells clients their replies; nothing is kept for who does not listen."""

    def __init__(self, redis: Redis, keys: Keys, *, seconds: float = PUBLISH_DEADLINE) -> None:
        self._redis = redis
        self._keys = keys
        self._seconds = seconds

    async def publish(self, replies: Mapping[int, Sequence[tuple[int, bytes]]]) -> None:
        """By client id. Raises RedisError, OSError or TimeoutError: some may have been told."""
        pipeline: Any = self._redis.pipeline(transaction=False)
        for client, pairs in replies.items():
            channel = self._keys.reply_channel(client)
            for message in encode_replies(pairs):
                pipeline.execute_command("PUBLISH", channel, message)
        async with deadline(self._seconds):
            await execute(pipeline)


class ReplySubscription:
    """The subscription of one client object, on a connection of its own, renewed when it is lost.

    `received` is called with what arrives, `interrupted` when something may have been missed.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        channel: bytes,
        *,
        received: Callable[[Iterable[Pair]], None],
        interrupted: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._received = received
        self._interrupted = interrupted
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled."""
        warned = False
        while True:
            try:
                await listen(self._connection, self._channel, self._take)
            except (RedisError, OSError) as error:
                if self.subscribed.is_set() or not warned:  # once per outage
                    _log.warning("client.replies_interrupted: reading the outbox instead: %s", error)
                warned = True
            finally:
                self.subscribed.clear()
                await self._connection.disconnect(nowait=True)
            await asyncio.sleep(_RETRY)

    def _take(self, message: Any) -> None:
        if message[0] == b"message":
            try:
                self._received(decode_replies(message[2]))
            except ValueError as error:
                _log.warning("client.reply_ignored: %s", error)
        elif message[0] == b"subscribe":
            self.subscribed.set()
            # Whatever was published before this moment was not heard.
            self._interrupted()
