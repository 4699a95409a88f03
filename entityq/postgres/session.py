"""One connection for one kind of work: opened when it is needed, and anew after it was lost."""

import asyncio
import select
from collections.abc import Awaitable, Callable
from typing import TypeVar

from psycopg import Error
from psycopg.pq import TransactionStatus

from entityq.errors import PersistenceError
from entityq.postgres.connect import STATEMENT_DEADLINE, Connection

T = TypeVar("T")


class ConnectionLost(Exception):
    """The connection ended, or was too slow, in the middle of a statement: its outcome is unknown."""


class Session:
    """Statements run one at a time, in the order of the calls."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        first: Connection | None = None,
        deadline: float = STATEMENT_DEADLINE,
    ) -> None:
        """`first` is used, and closed, as if `connect` had made it."""
        self._connect = connect
        self._connection = first
        self._deadline = deadline
        self._turn = asyncio.Lock()
        self._closed = False

    async def run(self, statement: Callable[[Connection], Awaitable[T]]) -> T:
        """What `statement` returns.

        Raises ConnectionLost; PersistenceError when there is no connection to be had, and nothing was sent;
        psycopg.Error when the server refused the statement, which then has changed nothing.
        """
        cancelled = _cancelling()
        async with self._turn:
            if self._closed:
                raise PersistenceError("The connection was closed")
            connection = self._connection
            if connection is not None and _ended(connection):
                await self._drop(connection)
                connection = None
            if connection is None:
                connection = await self._open()
            try:
                async with asyncio.timeout(self._deadline):
                    result = await statement(connection)
                _pass_on_cancellation(cancelled)
                return result
            except TimeoutError as error:
                await self._drop(connection)
                raise ConnectionLost(f"no answer within {self._deadline:g} s") from error
            except Error as error:
                if not _lost(connection, error):
                    raise
                await self._drop(connection)
                raise ConnectionLost(" ".join(str(error).split())) from error
            except Exception:
                raise
            except BaseException:
                # Cancelled: the answer may still come, and must not be taken for the next statement's.
                await self._drop(connection)
                raise

    async def close(self) -> None:
        """For good. A statement under way is cut off."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> Connection:
        connection = await self._connect()
        if self._closed:  # meanwhile
            await connection.close()
            raise PersistenceError("The connection was closed")
        self._connection = connection
        return connection

    async def _drop(self, connection: Connection) -> None:
        self._connection = None
        await connection.close()


def _ended(connection: Connection) -> bool:
    # An idle server has nothing to say but that it ends the session. A statement that is sent all the same
    # would be lost, and nobody could tell whether it was executed.
    return connection.closed or bool(select.select([connection.fileno()], [], [], 0)[0])


def _cancelling() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _pass_on_cancellation(before: int) -> None:
    """psycopg waits with asyncio.wait_for, which, before Python 3.12, loses a cancellation that comes together
    with the answer: whoever cancelled the task would wait for ever."""
    if _cancelling() > before:
        raise asyncio.CancelledError


def _lost(connection: Connection, error: Error) -> bool:
    # A server that ends a session says so (class 57P) before the end of the connection is seen.
    ending = (error.sqlstate or "").startswith(("08", "57P"))
    return ending or connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE
