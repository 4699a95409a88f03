"""Requests in transactions of SQLAlchemy, with any of its drivers for PostgreSQL.

    with Session(engine) as session, session.begin():
        session.add(order)
        receipt = send(session, account.deposit.request(10, reference="r-1"))

The request is sent when the transaction commits, and never if it is rolled back.
"""

import re
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, overload

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from entityq.client.joining import join, join_async
from entityq.errors import UnsafeConfiguration
from entityq.postgres.joined import Rows, Statement
from entityq.receipt import Receipt
from entityq.request import Request
from entityq.sent import Sent

R = TypeVar("R")

AnyConnection = Connection | Session | scoped_session[Any]
AnyAsyncConnection = AsyncConnection | AsyncSession | async_scoped_session[Any]

_ASYNC = (AsyncConnection, AsyncSession, async_scoped_session)
_PARAMETER = re.compile(r"%\((\w+)\)s")


@overload
def send(connection: AnyConnection, request: Request[R]) -> Receipt[R]: ...


@overload
def send(connection: AnyAsyncConnection, request: Request[R]) -> Coroutine[Any, Any, Receipt[R]]: ...


def send(
    connection: AnyConnection | AnyAsyncConnection, request: Request[R]
) -> Receipt[R] | Coroutine[Any, Any, Receipt[R]]:
    """In the transaction of a session or a connection; to be awaited with an async one.

    Waits for somebody else's transaction that has stored the same primary key and has not ended. The receipt can be
    waited for after the commit. Raises PrimaryKeyConflict, ReplyExpired, MalformedMessage, MailboxFull,
    PersistenceError, which leave the transaction as it was, UnsafeConfiguration for another database than
    PostgreSQL, and sqlalchemy.exc.DBAPIError.
    """
    if isinstance(connection, _ASYNC):
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
    if isinstance(connection, _ASYNC):
        return _send_many_async(connection, requests)
    own = connection if isinstance(connection, Connection) else connection.connection()
    _refuse_other(own.dialect.name)

    def execute(statement: Statement) -> Rows:
        return own.execute(_text(statement), statement.parameters).all()

    return join(requests, execute)


async def _send_async(connection: AnyAsyncConnection, request: Request[R]) -> Receipt[R]:
    return (await _send_many_async(connection, [request]))[0].receipt


async def _send_many_async(connection: AnyAsyncConnection, requests: Sequence[Request[R]]) -> list[Sent[R]]:
    own = connection if isinstance(connection, AsyncConnection) else await connection.connection()
    _refuse_other(own.dialect.name)

    async def execute(statement: Statement) -> Rows:
        return (await own.execute(_text(statement), statement.parameters)).all()

    return await join_async(requests, execute)


def _text(statement: Statement) -> TextClause:
    return text(_PARAMETER.sub(r":\1", statement.sql))


def _refuse_other(dialect: str) -> None:
    if dialect != "postgresql":
        raise UnsafeConfiguration(
            f"A request cannot join a transaction of {dialect}.",
            advice="It can join one of the PostgreSQL database that has the outbox.",
        )
