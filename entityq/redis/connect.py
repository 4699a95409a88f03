"""How entityq opens Redis (or Valkey) connections.

Nothing is retried here and nothing waits for long: Redis only makes things faster, and the caller, who has a
deadline and a fallback, decides. The defaults of redis-py's client are ten retries with delays (none with a
pool that is given to it), a pool that raises when all of its connections are in use, and a read timeout that
can be shorter than a blocking read.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.connection import (
    AbstractConnection,
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from entityq.config import masked_url
from entityq.errors import UnsafeConfiguration

# Seconds. Above the deadlines of the callers: these end what no caller is waiting for.
CONNECT_DEADLINE = 2.0
POOL_DEADLINE = 5.0


class _AnyConnection(AbstractConnection):
    """What redis-py's own kinds lack when a connection or a server goes bad."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        # redis-py bounds the connect itself, and not what is said before the first command.
        async with asyncio.timeout(CONNECT_DEADLINE):
            await super().on_connect_check_health(check_health)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        # uvloop raises RuntimeError, which redis-py passes on, where asyncio raises nothing: at a write after
        # the connection was reset, and before a read has met it.
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise RedisConnectionError(f"the connection ended before the write: {error}") from error

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return cast("Any", await super().read_response(*arguments, **options))
        except ReadOnlyError:
            # After a failover the old primary may go on as a replica: the name in the URL has moved.
            await self.disconnect(nowait=True)
            raise


class _TcpConnection(_AnyConnection, Connection):
    pass


class _TlsConnection(_AnyConnection, SSLConnection):
    pass


class _UnixConnection(_AnyConnection, UnixDomainSocketConnection):
    pass


_CLASSES: Mapping[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


@asynccontextmanager
async def open_client(url: str, *, name: str = "entityq", size: int = 8) -> AsyncGenerator[Redis, None]:
    """A client for commands, pipelines and pub/sub, over up to `size` connections; it waits for a free one.

    Nothing is sent before the first command. Errors of the connection are redis.exceptions.RedisError. Every
    command needs a deadline of its own.
    """
    pool = BlockingConnectionPool(max_connections=size, timeout=POOL_DEADLINE, **_parameters(url, name))
    client = Redis.from_pool(pool)
    try:
        yield client
    finally:
        await client.aclose()


def open_connection(url: str, *, name: str = "entityq") -> AbstractConnection:
    """A single connection for blocking reads, not connected yet. Every read on it needs its own deadline."""
    parameters = _parameters(url, name)
    connection_class: type[AbstractConnection] = parameters.pop("connection_class")
    return connection_class(**parameters)


def _parameters(url: str, name: str) -> dict[str, Any]:
    try:
        given = parse_url(url)
    except ValueError:
        # The message can hold parts of the URL, and so its password.
        raise UnsafeConfiguration(
            f"{masked_url(url)} is not a Redis URL.", advice="Write redis://user:password@host:6379/0."
        ) from None
    ours = {
        "socket_connect_timeout": CONNECT_DEADLINE,
        # With one, redis-py writes under asyncio.wait_for, which in Python 3.11 loses a cancellation that comes
        # just after the write: the task would go on for ever.
        "socket_timeout": None,
        "socket_keepalive": True,
        "decode_responses": False,
        # Without HELLO and CLIENT SETINFO a new connection costs no extra round trip, and no push message can
        # come between a command and its reply. Replies by pub/sub have a connection of their own in both.
        "protocol": 2,
        "driver_info": None,
        "client_name": name,
        "connection_class": _CLASSES[given.get("connection_class", Connection)],
    }
    if given.get("path"):
        ours.pop("socket_keepalive")
    return {**given, **ours}
