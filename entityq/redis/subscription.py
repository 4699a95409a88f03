"""Listening to one channel, on a connection of its own."""

from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

# Seconds without a word before Redis is asked for one, and again before it is given up.
SILENCE = 2.0


async def listen(connection: AbstractConnection, channel: bytes, take: Callable[[Any], None]) -> None:
    """Subscribes, and calls `take` with each raw message, the confirmation first.

    Until the connection is lost, or silent (half-open: nobody says that it has ended): raises RedisError or
    OSError.
    """
    untyped: Any = connection
    await untyped.send_command("SUBSCRIBE", channel)  # connects first
    subscribed = asked = False
    while True:
        try:
            message: Any = await untyped.read_response(timeout=SILENCE)
        except ResponseError:
            # A Redis that cannot save refuses even PING, and is there all the same.
            if not subscribed:
                raise
            asked = False
            continue
        if message is not None:
            subscribed, asked = True, False
            take(message)
        elif asked:
            raise ConnectionError(f"Redis was silent for {2 * SILENCE:g} s")
        else:
            await untyped.send_command("PING")
            asked = True
