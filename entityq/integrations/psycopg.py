"""Requests in transactions of psycopg.

    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO orders ...")
        receipt = send(connection, account.deposit.request(10, reference="r-1"))

The request is sent when the transaction commits, and never if it is rolled back.
"""

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, overload

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import tuple_row

from entityq.client.joining import join, join_async
from entityq.postgres.joined import Rows, Statement
from entityq.receipt import Receipt
from entityq.request import Request
from entityq.sent import Sent

R = TypeVar("R")

AnyConnection = Connection[Any] | Cursor[Any]
AnyAsyncConnection = AsyncConnection[Any] | AsyncCursor[Any]


@overload
def send(connection: AnyConnection, request: Request[R]) -> Receipt[R]: ...


@overload
def send(connection: AnyAsyncConnection, request: Request[R]) -> Coroutine[Any, Any, Receipt[R]]: ...


def send(
    connection: AnyConnection | AnyAsyncConnection, request: Request[R]
) -> Receipt[R] | Coroutine[Any, Any, Receipt[R]]:
    """In the connection's transaction; to be awaited with an async one.

    Waits for somebody else's transaction that has stored the same primary key and has not ended. The receipt can be
    waited for after the commit. Raises PrimaryKeyConflict, ReplyExpired, MalformedMessage, MailboxFull,
    PersistenceError, which leave the transaction as it was, and psycopg.Error.
    """
    if isinstance(connection, AsyncConnection | AsyncCursor):
        return _send_async(connection, request)
    return send_many(connection, [request])[0].receipt


@overload
def send_many(connection: AnyConnection, requests: Sequence[Request[R]]) -> list[Sent[R]]: ...


@overload
def send_many(
    connection: AnyAsyncConnection, requests: Sequence[Request[R]]
) -> Coroutine[Any, Any, list[Sent[R]]]: ...


def send_many(
    connection: AnyConnection | AnyAsyncConnection, requests: Sequence[Request[R]]
) -> list[Sent[R]] | Coroutine[Any, Any, list[Sent[R]]]:
    """Many at once, in their order; one outcome for each, as of `app.send_many`."""
    if isinstance(connection, AsyncConnection | AsyncCursor):
        return _send_many_async(connection, requests)
    own = connection.connection if isinstance(connection, Cursor) else connection
    # Not the connection's kind of cursor: its placeholders, or its rows, can be others.
    with Cursor(own, row_factory=tuple_row) as cursor:

        def execute(statement: Statement) -> Rows:
            return cursor.execute(statement.sql.encode(), statement.parameters, prepare=False).fetchall()

        return join(requests, execute)


async def _send_async(connection: AnyAsyncConnection, request: Request[R]) -> Receipt[R]:
    return (await _send_many_async(connection, [request]))[0].receipt


async def _send_many_async(connection: AnyAsyncConnection, requests: Sequence[Request[R]]) -> list[Sent[R]]:
    own = connection.connection if isinstance(connection, AsyncCursor) else connection
    async with AsyncCursor(own, row_factory=tuple_row) as cursor:

        async def execute(statement: Statement) -> Rows:
            await cursor.execute(statement.sql.encode(), statement.parameters, prepare=False)
            return await cursor.fetchall()

        return await join_async(requests, execute)
