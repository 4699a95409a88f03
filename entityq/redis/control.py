"""The control channel: runners tell each other what changed, so that nobody waits for the next poll.

Nothing depends on a message: who missed one finds the same by polling Postgres. So Redis down means slower.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from entityq.redis.subscription import listen

_log = logging.getLogger(__name__)

# Seconds.
_PUBLISH_DEADLINE = 0.1
_RETRY = 0.5


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """Frozen format: a JSON object with the member "kind"; unknown kinds and fields are ignored."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def encode(self) -> bytes:
        return json.dumps({"kind": self.kind, **self.fields}, separators=(",", ":")).encode()


def decode_control(data: bytes) -> ControlMessage:
    """Raises ValueError for what is no control message."""
    try:
        value: object = json.loads(data)
    except RecursionError:
        raise ValueError("a control message is not nested") from None
    if not isinstance(value, dict):
        raise ValueError("a control message is a JSON object")
    fields = cast("dict[str, Any]", value)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str):
        raise ValueError("a control message has a kind")
    return ControlMessage(kind, fields)


Listener = Callable[[ControlMessage], None]


class Publishes(Protocol):
    """redis.asyncio.Redis, of which nothing else is needed."""

    def publish(self, channel: bytes, message: bytes) -> Awaitable[int]: ...


class ControlChannel:
    """One subscription of a process, for all of its listeners."""

    def __init__(self, redis: Publishes, connection: AbstractConnection, channel: bytes) -> None:
        """`connection`: for the subscription alone, not connected yet (`open_connection`)."""
        self._redis = redis
        self._connection = connection
        self._channel = channel
        self._listeners: list[Listener] = []
        self.subscribed = asyncio.Event()

    @contextmanager
    def listening(self, listener: Listener) -> Generator[None]:
        """Calls `listener` with every message, the process's own included, while `run` runs."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def publish(self, message: ControlMessage) -> bool:
        """False when Redis did not take it within 100 ms: then the others find out by polling."""
        try:
            async with asyncio.timeout(_PUBLISH_DEADLINE):
                await self._redis.publish(self._channel, message.encode())
        except (RedisError, OSError, TimeoutError) as error:
            _log.debug("control.unpublished kind=%s: %r", message.kind, error)
            return False
        return True

    async def run(self) -> None:
        """Receives until it is cancelled; subscribes again when the connection is lost."""
        first = True
        while True:
            try:
                await listen(self._connection, self._channel, self._take)
            except (RedisError, OSError) as error:
                if first or self.subscribed.is_set():  # once per outage
                    _log.warning("control.deaf: %s; polling Postgres instead", error)
            finally:
                self.subscribed.clear()
                await self._connection.disconnect(nowait=True)
            first = False
            await asyncio.sleep(_RETRY)

    def _take(self, reply: Any) -> None:
        if reply[0] == b"subscribe":
            self.subscribed.set()
        if reply[0] != b"message":
            return
        try:
            message = decode_control(reply[2])
        except ValueError as error:
            _log.warning("control.ignored: %s", error)
            return
        for listener in list(self._listeners):
            listener(message)
