"""A connection whose session must not be lost unnoticed: it holds the runner's advisory locks."""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from psycopg import Error, Notify, OperationalError
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.sql import SQL, Identifier

from entityq.postgres.connect import Connection

Rows = list[tuple[Any, ...]]
Parameters = Mapping[str, object]


class LeaseLost(Exception):
    """The lease session has ended, and with it every lease of its incarnation. The message says why."""


class PinnedConnection:
    """One statement at a time, each under a deadline that is enforced from outside of the connection.

    The deadline, a cancellation in the middle of a statement, and any error that leaves the session unusable
    close the connection at once, without waiting for the server, because nobody can say what the server still
    does. Then `lost` is set and `reason` says why. Between statements the socket is watched for its end.
    """

    def __init__(self, connection: Connection, deadline: float) -> None:
        """`deadline` of each statement, in seconds. Must be made in the loop that uses it."""
        self.lost = asyncio.Event()
        self.reason = ""
        self._connection = connection
        self._deadline = deadline
        self._turnstile = asyncio.Lock()  # first come, first served: unlocks follow the commits queued before
        self._statement: asyncio.Task[Rows] | None = None
        self._notice = ""
        self._loop = asyncio.get_running_loop()
        # Of the same socket, under another number: psycopg registers its own number with the loop while a
        # statement runs, and the loop knows one reader per number. Shutting it down, where closing psycopg's
        # number under a running statement could hit a file that was opened meanwhile, wakes the statement.
        self._socket = socket.socket(fileno=os.dup(connection.pgconn.socket))
        connection.add_notice_handler(self._noticed)
        self._watch()

    async def execute(self, query: bytes, parameters: Parameters | None = None) -> Rows:
        """The rows of one statement, in binary. Errors that leave the session usable pass (psycopg.Error).

        Raises LeaseLost when the connection ended, before or by this statement. A cancellation ends the
        connection, except while the statement still waits for its turn.
        """
        async with self._turnstile:
            if self.lost.is_set():
                raise LeaseLost(self.reason)
            self._unwatch()
            # A task of its own, because psycopg answers a cancellation by asking the server, for up to 10 s.
            # It cannot outlive this call by more than a turn of the loop: `end` wakes it.
            statement = asyncio.create_task(self._run(query, parameters), name="entityq lease statement")
            statement.add_done_callback(_retrieved)
            self._statement = statement
            try:
                await asyncio.wait((statement,), timeout=self._deadline)
            except asyncio.CancelledError:
                self.end("a statement was cancelled")
                raise
            if not statement.done():
                self.end(f"Postgres did not answer within {self._deadline:g} s")
                await asyncio.wait((statement,))
            return self._outcome(statement)

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Calls `heard` with the payload of each notification on the channel, for as long as the session lasts.

        They come with the answer of a statement, or between two. Raises as `execute` does.
        """

        def handle(notification: Notify) -> None:
            if notification.channel == channel:
                heard(notification.payload)

        self._connection.add_notify_handler(handle)
        await self.execute(SQL("LISTEN {}").format(Identifier(channel)).as_bytes(None))

    def end(self, reason: str) -> None:
        """Closes the connection now, whatever runs on it. Only the first reason counts."""
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        self._unwatch()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._statement is None or self._statement.done():
            self._connection.pgconn.finish()

    async def _run(self, query: bytes, parameters: Parameters | None) -> Rows:
        try:
            async with self._connection.cursor(binary=True) as cursor:
                await cursor.execute(query, parameters)
                return await cursor.fetchall() if cursor.description else []
        finally:
            if self.lost.is_set():
                self._connection.pgconn.finish()

    def _outcome(self, statement: asyncio.Task[Rows]) -> Rows:
        self._statement = None
        error = statement.exception()
        if isinstance(error, Error) and not self._usable_after(error):
            self.end(f"the connection failed: {_one_line(error)}")
        if self.lost.is_set():
            self._connection.pgconn.finish()
        else:
            self._watch()
        if error is None:
            return statement.result()
        if self.lost.is_set():
            raise LeaseLost(self.reason) from error
        raise error

    def _usable_after(self, error: Error) -> bool:
        # Class 08: the connection; 57P: the server ends the session, and the socket's end may come later.
        state = error.sqlstate or ("08000" if isinstance(error, OperationalError) else "")
        pgconn = self._connection.pgconn
        return (
            not state.startswith(("08", "57P"))
            and pgconn.status == ConnStatus.OK
            and pgconn.transaction_status == TransactionStatus.IDLE
        )

    def _watch(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._socket.fileno())

    def _readable(self) -> None:
        """Runs only between statements: nobody else reads from the socket then."""
        pgconn = self._connection.pgconn
        try:
            pgconn.consume_input()
            pgconn.is_busy()  # parses what came, so that the server's last words are known
        except Error as error:
            self.end(f"Postgres closed the connection: {self._notice or _one_line(error)}")
            return
        # While a statement runs, psycopg does the same.
        while notification := pgconn.notifies():
            if pgconn.notify_handler:
                pgconn.notify_handler(notification)

    def _noticed(self, diagnostic: Any) -> None:
        self._notice = diagnostic.message_primary or ""


def _retrieved(statement: asyncio.Task[Rows]) -> None:
    """Takes note of the error of a statement that nobody waits for any more."""
    if not statement.cancelled():
        statement.exception()


def _one_line(error: Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__
