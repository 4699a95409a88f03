"""How entityq opens Postgres connections: parameters, session settings, the pool, the lease connection.

Session settings are applied by set_config after connecting: poolers refuse them as `options`. They need a
session of their own, which is why `safety.refuse_pooler` guards the pool's address too.
"""

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any

from psycopg import AsyncConnection, Error, OperationalError, ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import (
    CantChangeRuntimeParam,
    InsufficientPrivilege,
    InvalidParameterValue,
    UndefinedObject,
)
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from entityq.config import masked_url
from entityq.errors import PersistenceError, UnsafeConfiguration
from entityq.postgres.queries import load

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

_QUERIES = load("session.sql")
_APPLY_SETTINGS = _QUERIES["apply_settings"]
_READ_SETTINGS = _QUERIES["read_settings"]

log = logging.getLogger(__name__)

# Seconds. Also how long a caller waits for a connection of the pool.
CONNECT_DEADLINE = 5.0
# For one statement. Above what a loaded server needs: giving up earlier would only add to its load.
STATEMENT_DEADLINE = 10.0

_PARAMETERS: Mapping[str, str | int] = {
    # A host that is gone is noticed in about 11 s, also while nothing is sent (kernel default: 2 hours).
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    # Per host: a URL with several hosts reaches the second within our own deadline.
    "connect_timeout": 2,
    # A database in SQL_ASCII would otherwise hand text out as bytes.
    "client_encoding": "UTF8",
}

_SETTINGS: Mapping[str, str] = {
    # A role's or a database's own defaults must not change what our statements mean.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "timezone": "UTC",
    # The hot statements are keyed index lookups over unnested arrays. Statistics of a table that was empty
    # a moment ago suggest a sequential scan, a hash or a merge of the whole table for the same lookup.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # They are planned once per connection, not for the length of each array, and are too short to compile.
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # A row that waits for somebody else's uncommitted insert must not stall its batch.
    "lock_timeout": "100ms",
    # The caller's own deadline is shorter; this one ends what its caller has given up, and its locks.
    "statement_timeout": "15s",
    # A client that froze inside a transaction keeps row locks and the vacuum horizon.
    "idle_in_transaction_session_timeout": "10s",
    # Connections are idle between bursts.
    "idle_session_timeout": "0",
}

_LEASE_SETTINGS: Mapping[str, str] = {
    # Its deadline is enforced by the runner, outside of the connection: slow Postgres is not a lost lease.
    "statement_timeout": "0",
}

# How the server notices, in about 11 s, that a runner's host is gone, and frees its locks. Some platforms and
# managed services refuse one of them, or keep their own value without a word.
KEEPALIVES: Mapping[str, str] = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
    # Keepalives are not looked at while a statement runs.
    "client_connection_check_interval": "2s",
}
SETTING_REFUSALS = (InvalidParameterValue, CantChangeRuntimeParam, InsufficientPrivilege, UndefinedObject)

# Every statement is prepared at its first use: there are few, they are fixed, and planning is what they cost.
_KEYWORDS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0}


def session_settings(schema: str) -> dict[str, str]:
    """The settings of every session, as names and values for set_config."""
    # pg_temp is named, and last: it is otherwise searched first, and a temporary table could hide ours.
    quoted = schema.replace('"', '""')
    return {**_SETTINGS, "search_path": f'"{quoted}", pg_temp'}


def connection_parameters(url: str, application_name: str) -> str:
    """The libpq connection string of a URL. Raises UnsafeConfiguration for a URL that libpq cannot read."""
    # libpq quotes what it cannot read in its own message; of a password with a slash, it takes the part
    # before the slash for the port.
    try:
        given = conninfo_to_dict(url)
    except ProgrammingError:
        given = {"port": "?"}
    if not re.fullmatch(r"[\d,]*", str(given.get("port", ""))):
        raise UnsafeConfiguration(
            f"{masked_url(url)} is not a Postgres URL.",
            advice="Write postgresql://user:password@host:5432/database, special characters as %XX.",
        ) from None
    return make_conninfo("", **{**_PARAMETERS, **given, "application_name": application_name})


async def connect(
    url: str, *, schema: str, application_name: str = "entityq", deadline: float = CONNECT_DEADLINE
) -> Connection:
    """A connection of its own, in autocommit, with the session settings applied.

    Raises PersistenceError when the server cannot be reached or refuses the login.
    """
    connection = await open_unconfigured(url, application_name, deadline)
    await _configure(connection, session_settings(schema), deadline)
    return connection


async def connect_lease(
    url: str,
    *,
    schema: str,
    application_name: str = "entityq",
    deadline: float = CONNECT_DEADLINE,
    keepalives: Mapping[str, str] = KEEPALIVES,
) -> Connection:
    """The pinned connection of a runner: its session holds the shards' advisory locks.

    Warns of keepalives that the server does not take over. Raises PersistenceError as `connect` does.
    """
    connection = await open_unconfigured(url, application_name, deadline)
    settings = {**session_settings(schema), **_LEASE_SETTINGS}
    found = await _configure(connection, settings, deadline, optional=keepalives)
    over_tcp = not connection.info.host.startswith("/")
    refused = [
        f"{name}={found[name]} instead of {value}"
        for name, value in keepalives.items()
        if found[name] != value and (over_tcp or not name.startswith("tcp_"))
    ]
    if refused:
        log.warning(
            "lease.keepalives_refused: Postgres at %s has %s: it notices later that a runner's host is gone,"
            " and a peer's eviction frees the shards first",
            masked_url(url),
            ", ".join(refused),
        )
    return connection


@asynccontextmanager
async def open_pool(
    url: str,
    *,
    schema: str,
    application_name: str = "entityq",
    size: int = 4,
    deadline: float = CONNECT_DEADLINE,
) -> AsyncGenerator[Pool, None]:
    """A pool of up to `size` configured connections, the first of them open. Raises PersistenceError."""

    async def configure(connection: Connection) -> None:
        await _configure(connection, session_settings(schema), deadline)

    # The first connection gives the reason of a failure; the pool itself only knows that it timed out.
    first = await connect(url, schema=schema, application_name=application_name, deadline=deadline)
    await first.close()
    pool = AsyncConnectionPool[Connection](
        connection_parameters(url, application_name),
        kwargs=_KEYWORDS,
        min_size=1,
        max_size=size,
        name=application_name,
        open=False,
        configure=configure,
        timeout=deadline,
        # The pool's attempts are 1, 2, 4, ... s apart. It gives up when its waiter does and starts anew for
        # the next one, so that they are never far apart after a long outage.
        reconnect_timeout=deadline,
    )
    try:
        await pool.open(wait=True, timeout=deadline)
    except PoolTimeout:
        raise unreachable(url, f"no connection within {deadline:g} s") from None
    try:
        yield pool
    finally:
        await pool.close(timeout=deadline)


@asynccontextmanager
async def pooled(pool: Pool, seconds: float = STATEMENT_DEADLINE) -> AsyncGenerator[Connection, None]:
    """A connection of the pool for one statement, which raises OperationalError after so many seconds.

    The server's own timeout does not help where the connection is cut off in between: whatever shares the
    statement would wait for ever. Raises PoolTimeout.
    """
    async with pool.connection() as connection:
        # Not a cancellation: psycopg would ask the server to end the statement, and wait for that.
        timer = asyncio.get_running_loop().call_later(seconds, _cut_off, connection)
        try:
            yield connection
        finally:
            timer.cancel()


def _cut_off(connection: Connection) -> None:
    log.warning("postgres.no_answer within its deadline: the connection is given up")
    with suppress(OSError, Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)


async def open_unconfigured(
    url: str, application_name: str = "entityq", deadline: float = CONNECT_DEADLINE
) -> Connection:
    """A connection with the settings of its role. Raises PersistenceError as `connect` does."""
    parameters = connection_parameters(url, application_name)
    try:
        async with asyncio.timeout(deadline):
            return await AsyncConnection.connect(parameters, **_KEYWORDS)
    except TimeoutError:
        raise unreachable(url, f"no connection within {deadline:g} s") from None
    except OperationalError as error:
        raise unreachable(url, str(error)) from error


async def _configure(
    connection: Connection,
    settings: Mapping[str, str],
    deadline: float,
    *,
    optional: Mapping[str, str] = MappingProxyType({}),
) -> Mapping[str, str | None]:
    """The values that the `optional` ones have afterwards. Closes the connection when it fails."""
    try:
        async with asyncio.timeout(deadline):
            await _apply(connection, settings)
            return await _apply_what_it_takes(connection, optional)
    except TimeoutError:
        await connection.close()
        raise PersistenceError(f"Postgres did not answer within {deadline:g} s") from None
    except BaseException:
        await connection.close()
        raise


async def _apply(connection: Connection, settings: Mapping[str, str]) -> None:
    values = {"names": list(settings), "values": list(settings.values())}
    # Not prepared: it runs once per connection.
    await connection.execute(_APPLY_SETTINGS, values, prepare=False)


async def _apply_what_it_takes(
    connection: Connection, settings: Mapping[str, str]
) -> Mapping[str, str | None]:
    if not settings:
        return {}
    try:
        await _apply(connection, settings)
    except SETTING_REFUSALS:
        for name, value in settings.items():
            with suppress(*SETTING_REFUSALS):
                await _apply(connection, {name: value})
    rows = await connection.execute(_READ_SETTINGS, {"names": list(settings)}, prepare=False)
    return dict(await rows.fetchall())


async def fetch_value(
    connection: Connection, query: bytes, parameters: Mapping[str, object] | None = None
) -> Any:
    """The first column of the first row; None without rows. For rare statements: it is not prepared."""
    row = await (await connection.execute(query, parameters, prepare=False)).fetchone()
    return None if row is None else row[0]


def unreachable(url: str, reason: str) -> PersistenceError:
    """What a connection that could not be opened raises."""
    return PersistenceError(
        f"Cannot connect to Postgres at {masked_url(url)}: {' '.join(reason.split())}",
        advice="Is it running, and are the address and the login right?",
    )
