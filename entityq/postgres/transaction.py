"""Connections for the SQL of handlers, which commits with its turn.

Their sessions have the settings of the user's role and database, not entityq's: the handler's statements are the
user's. entityq's own, at the end of the turn, bring their settings along, for the rest of the transaction.
"""

import asyncio
import os
import select
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from psycopg import (
    AsyncCursor,
    AsyncTransaction,
    Cursor,
    Error,
    IsolationLevel,
    OperationalError,
    Rollback,
    Transaction,
)
from psycopg import Connection as BlockingConnection
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import TupleRow, tuple_row

from entityq.errors import PersistenceError
from entityq.postgres.connect import (
    CONNECT_DEADLINE,
    KEEPALIVES,
    SETTING_REFUSALS,
    Connection,
    Pool,
    connection_parameters,
    open_unconfigured,
    session_settings,
    unreachable,
)
from entityq.postgres.membership import runner_class, unsigned
from entityq.postgres.queries import load

Parameters = Mapping[str, object]
Rows = list[tuple[Any, ...]]

_SQL = load("transaction.sql")
_APPLY_SETTINGS = load("session.sql")["apply_settings"]
_PREFERRED = {"names": list(KEEPALIVES), "values": list(KEEPALIVES.values())}

# Connections of a runner for transactional turns, and so such turns at once.
MOST = 2
# Seconds that a turn waits for one of them before it lets go, to try again later.
PATIENCE = 30.0
# How long a handler may do something else in its transaction; above the timeout of an ask in a turn.
IDLE_IN_TRANSACTION = "60s"
# psycopg's own default: statements of the handler are prepared when they repeat.
_PREPARE_THRESHOLD = 5


class TurnConnection(Protocol):
    """A connection of psycopg and one transaction at a time, for handlers of either kind."""

    @property
    def pgconn(self) -> PGconn: ...

    async def begin(self) -> None: ...

    async def execute(self, query: bytes, parameters: Parameters | None = None) -> Rows:
        """The rows of one statement of entityq's, or those of none for several, which have no parameters."""
        ...

    async def commit(self) -> None: ...

    async def roll_back(self) -> None: ...

    async def close(self) -> None:
        """Waits for the statement of whoever uses it."""
        ...


class AsyncTurnConnection:
    """For handlers that are coroutine functions."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._transaction = AsyncTransaction(connection)

    @property
    def pgconn(self) -> PGconn:
        return self.connection.pgconn

    async def begin(self) -> None:
        # Inside of psycopg's own transaction block the handler's commit() and rollback() are refused.
        self.connection.row_factory = tuple_row
        self.connection.cursor_factory = AsyncCursor
        await self.connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        await self.connection.set_read_only(False)
        self._transaction = AsyncTransaction(self.connection)
        await self._transaction.__aenter__()

    async def execute(self, query: bytes, parameters: Parameters | None = None) -> Rows:
        one = parameters is not None
        async with AsyncCursor(self.connection, row_factory=tuple_row) as cursor:
            await cursor.execute(query, parameters, prepare=one, binary=one)
            return await cursor.fetchall() if one else []

    async def commit(self) -> None:
        await self._transaction.__aexit__(None, None, None)

    async def roll_back(self) -> None:
        await self._transaction.__aexit__(Rollback, Rollback(), None)

    async def close(self) -> None:
        async with self.connection.lock:
            await self.connection.close()


class BlockingTurnConnection:
    """For handlers that are plain functions: what waits for the server does it in a thread."""

    def __init__(self, connection: BlockingConnection[TupleRow]) -> None:
        self.connection = connection
        self._transaction = Transaction(connection)

    @property
    def pgconn(self) -> PGconn:
        return self.connection.pgconn

    async def begin(self) -> None:
        self.connection.row_factory = tuple_row
        self.connection.cursor_factory = Cursor
        self.connection.isolation_level = IsolationLevel.READ_COMMITTED
        self.connection.read_only = False
        self._transaction = Transaction(self.connection)
        await asyncio.to_thread(self._transaction.__enter__)

    async def execute(self, query: bytes, parameters: Parameters | None = None) -> Rows:
        return await asyncio.to_thread(self._execute, query, parameters)

    def _execute(self, query: bytes, parameters: Parameters | None) -> Rows:
        one = parameters is not None
        with Cursor(self.connection, row_factory=tuple_row) as cursor:
            cursor.execute(query, parameters, prepare=one, binary=one)
            return cursor.fetchall() if one else []

    async def commit(self) -> None:
        await asyncio.to_thread(self._transaction.__exit__, None, None, None)

    async def roll_back(self) -> None:
        await asyncio.to_thread(self._transaction.__exit__, Rollback, Rollback(), None)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        # Not under a handler that still uses it in its thread.
        with self.connection.lock:
            self.connection.close()


def split(pool_size: int) -> tuple[int, int]:
    """How many of a runner's connections are left for reads, and how many are for transactional turns."""
    turns = max(1, min(MOST, pool_size // 2))
    return max(1, pool_size - turns), turns


AnyTurnConnection = AsyncTurnConnection | BlockingTurnConnection
C = TypeVar("C", bound=AnyTurnConnection)


def cut_off(connection: TurnConnection) -> None:
    """Ends the connection under whoever waits for it; the server rolls back what it did not commit."""
    with suppress(OSError, Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Fence:
    """Ties the transactions of one incarnation to its leases."""

    schema: str
    namespace: str
    incarnation: int

    @property
    def name(self) -> str:
        """The application_name of the sessions, by which those of a dead incarnation are found."""
        return f"entityq:{self.incarnation} turn {self._cluster}"

    @property
    def commits(self) -> str:
        """What the name begins with while the transaction holds a shard, whose id follows."""
        return f"entityq:{self.incarnation} commit {self._cluster} "

    @property
    def _cluster(self) -> int:
        # Another cluster in the same database has the same numbers of incarnations.
        return unsigned(runner_class(self.schema, self.namespace))

    async def begin(self, connection: TurnConnection, shard_id: int, epoch: int) -> str | None:
        """Begins a transaction. Its id, or None when the epoch is over. Raises psycopg.Error."""
        await connection.begin()
        parameters = {"shard_id": shard_id, "epoch": epoch, "idle": IDLE_IN_TRANSACTION}
        return _transaction(await connection.execute(self._qualified("begin_turn"), parameters))

    async def end_handler(self, connection: TurnConnection) -> None:
        """Raises psycopg.Error for what is the handler's."""
        await connection.execute(_SQL["end_handler"])

    async def hold(self, connection: TurnConnection, shard_id: int, epoch: int) -> str | None:
        """From now on nobody gets the shard before the transaction has ended.

        The transaction's id, or None when the epoch is over. Raises psycopg.Error.
        """
        settings = session_settings(self.schema)
        parameters = {
            "shard_id": shard_id,
            "epoch": epoch,
            "name": f"{self.commits}{shard_id}",
            "names": list(settings),
            "values": list(settings.values()),
        }
        return _transaction(await connection.execute(self._qualified("hold_shard"), parameters))

    def _qualified(self, name: str) -> bytes:
        quoted = '"' + self.schema.replace('"', '""') + '"'
        return _SQL[name].replace(b"{schema}", quoted.encode())


def _transaction(rows: Rows) -> str | None:
    return str(rows[0][0]) if rows else None


class TurnConnections:
    """At most `size` connections, of both kinds together, for one incarnation.

    Args:
        name: the application_name of the sessions.
        pool: it shrinks to `left`, once these are in use: both together are not to be more than before.
    """

    def __init__(self, name: str, *, url: str, pool: Pool, size: int, left: int) -> None:
        self._name = name
        self._url = url
        self._pool = pool
        self._left = left
        self._permits = asyncio.Semaphore(size)
        self._idle: list[AnyTurnConnection] = []
        self._busy: set[AnyTurnConnection] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._ended = False

    @property
    def all_busy(self) -> bool:
        """Whether the next one has to wait."""
        return self._permits.locked()

    async def take_async(self) -> AsyncTurnConnection:
        """Waits for one. Raises PersistenceError."""
        return await self._take(AsyncTurnConnection, self._connect)

    async def take_blocking(self) -> BlockingTurnConnection:
        """Waits for one. Raises PersistenceError."""
        return await self._take(BlockingTurnConnection, self._connect_blocking)

    async def give_back(self, connection: AnyTurnConnection) -> None:
        """After its transaction: nothing of the handler's stays in the session."""
        try:
            await connection.execute(_SQL["reset_session"])
            await _prefer(connection)
            fit = connection.pgconn.transaction_status == TransactionStatus.IDLE
        except Error:
            fit = False
        except BaseException:
            self.give_up(connection)
            raise
        if not fit or self._ended:
            self.give_up(connection)
            return
        self._busy.discard(connection)
        self._idle.append(connection)
        self._permits.release()

    def give_up(self, connection: AnyTurnConnection) -> None:
        """Whatever it does: the connection is ended, and is nobody's."""
        cut_off(connection)
        self._busy.discard(connection)
        self._permits.release()
        closing = asyncio.create_task(connection.close(), name=f"{self._name} close")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def end(self) -> None:
        """For good: statements that are under way fail."""
        self._ended = True
        for connection in self._busy:
            cut_off(connection)
        for connection in self._idle:
            connection.pgconn.finish()
        self._idle.clear()

    async def ended(self, seconds: float) -> None:
        """After `end`. Waits for so long until those that were given up are closed."""
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=seconds)

    async def _take(self, kind: type[C], connect: Callable[[], Awaitable[C]]) -> C:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._permits.acquire()
        except TimeoutError:
            raise PersistenceError(
                f"no connection for a transactional turn was free for {PATIENCE:g} s",
                advice="Do what takes long outside of the transaction, or start more runners.",
            ) from None
        try:
            connection = self._take_idle(kind)
            if connection is None:
                await self._pool.resize(1, self._left)
                connection = await connect()
        except BaseException:
            self._permits.release()
            raise
        self._busy.add(connection)
        if self._ended:
            cut_off(connection)
        return connection

    def _take_idle(self, kind: type[C]) -> C | None:
        """One that still lives; one of the other kind makes room."""
        for connection in list(self._idle):
            if _has_ended(connection):
                self._idle.remove(connection)
                connection.pgconn.finish()
        for connection in self._idle:
            if isinstance(connection, kind):
                self._idle.remove(connection)
                return connection
        if self._idle:
            self._idle.pop(0).pgconn.finish()
        return None

    async def _connect(self) -> AsyncTurnConnection:
        opened = await open_unconfigured(self._url, self._name)
        opened.prepare_threshold = _PREPARE_THRESHOLD
        return await _preferred(AsyncTurnConnection(opened))

    async def _connect_blocking(self) -> BlockingTurnConnection:
        parameters = connection_parameters(self._url, self._name)

        def connect() -> BlockingConnection[TupleRow]:
            return BlockingConnection.connect(parameters, autocommit=True)

        opening = asyncio.ensure_future(asyncio.to_thread(connect))
        try:
            # libpq has its own timeout, and ends there.
            await asyncio.wait([opening], timeout=CONNECT_DEADLINE)
            if not opening.done():
                raise unreachable(self._url, f"no connection within {CONNECT_DEADLINE:g} s")
            opened = opening.result()
        except OperationalError as error:
            raise unreachable(self._url, str(error)) from error
        except BaseException:
            opening.add_done_callback(_close)
            raise
        return await _preferred(BlockingTurnConnection(opened))


async def _preferred(connection: C) -> C:
    try:
        await _prefer(connection)
    except BaseException as error:
        cut_off(connection)
        connection.pgconn.finish()
        if isinstance(error, Error):
            raise PersistenceError(f"A new connection to Postgres failed: {error}") from error
        raise
    return connection


async def _prefer(connection: TurnConnection) -> None:
    """A server that does not take them over notices later that a runner has gone."""
    with suppress(*SETTING_REFUSALS):
        await connection.execute(_APPLY_SETTINGS, _PREFERRED)


def _has_ended(connection: TurnConnection) -> bool:
    # An idle server has nothing to say but that it ends the session.
    try:
        return bool(select.select([connection.pgconn.socket], [], [], 0)[0])
    except (OSError, Error, ValueError):
        return True


def _close(opening: "asyncio.Future[BlockingConnection[TupleRow]]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
