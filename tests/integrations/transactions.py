"""Transactions of other libraries, all with one face: what is not async runs in a thread of its own."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import django
import psycopg
from django.conf import settings
from django.db import connections, transaction
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from entityq import Receipt, Request, Sent
from entityq.integrations import django as django_integration
from entityq.integrations import psycopg as psycopg_integration
from entityq.integrations import sqlalchemy as sqlalchemy_integration

T = TypeVar("T")
R = TypeVar("R")


class Transaction(Protocol):
    """`commit`, `rollback`: the next statement begins another one. `inner`, `undo_inner`: a savepoint."""

    async def send(self, request: Request[R]) -> Receipt[R]: ...

    async def send_many(self, requests: Sequence[Request[R]]) -> list[Sent[R]]: ...

    async def execute(self, statement: str) -> None: ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...

    async def inner(self) -> None: ...

    async def undo_inner(self) -> None: ...

    async def close(self) -> None: ...


class InThread:
    """Of one thread: `run` waits without blocking the loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(work))

    def end(self) -> None:
        self._thread.shutdown()


class Psycopg:
    def __init__(self, url: str, **options: Any) -> None:
        self.connection = psycopg.connect(url, **options)
        self._thread = InThread()

    async def send(self, request: Request[R]) -> Receipt[R]:
        return await self._thread.run(lambda: psycopg_integration.send(self.connection, request))

    async def send_many(self, requests: Sequence[Request[R]]) -> list[Sent[R]]:
        with self.connection.cursor() as cursor:
            return await self._thread.run(lambda: psycopg_integration.send_many(cursor, requests))

    async def execute(self, statement: str) -> None:
        await self._thread.run(lambda: self.connection.execute(statement.encode()))

    async def commit(self) -> None:
        await self._thread.run(self.connection.commit)

    async def rollback(self) -> None:
        await self._thread.run(self.connection.rollback)

    async def inner(self) -> None:
        await self.execute("SAVEPOINT inner_one")

    async def undo_inner(self) -> None:
        await self.execute("ROLLBACK TO SAVEPOINT inner_one")

    async def close(self) -> None:
        self.connection.close()
        self._thread.end()


class PsycopgAsync:
    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def send(self, request: Request[R]) -> Receipt[R]:
        return await psycopg_integration.send(self._connection, request)

    async def send_many(self, requests: Sequence[Request[R]]) -> list[Sent[R]]:
        async with self._connection.cursor() as cursor:
            return await psycopg_integration.send_many(cursor, requests)

    async def execute(self, statement: str) -> None:
        await self._connection.execute(statement.encode())

    async def commit(self) -> None:
        await self._connection.commit()

    async def rollback(self) -> None:
        await self._connection.rollback()

    async def inner(self) -> None:
        await self.execute("SAVEPOINT inner_one")

    async def undo_inner(self) -> None:
        await self.execute("ROLLBACK TO SAVEPOINT inner_one")

    async def close(self) -> None:
        await self._connection.close()


class SqlalchemySession:
    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, poolclass=NullPool)
        self._session = Session(self._engine)
        self._thread = InThread()
        self._inner: Any = None

    async def send(self, request: Request[R]) -> Receipt[R]:
        return await self._thread.run(lambda: sqlalchemy_integration.send(self._session, request))

    async def send_many(self, requests: Sequence[Request[R]]) -> list[Sent[R]]:
        return await self._thread.run(
            lambda: sqlalchemy_integration.send_many(self._session.connection(), requests)
        )

    async def execute(self, statement: str) -> None:
        await self._thread.run(lambda: self._session.execute(text(statement)))

    async def commit(self) -> None:
        await self._thread.run(self._session.commit)

    async def rollback(self) -> None:
        await self._thread.run(self._session.rollback)

    async def inner(self) -> None:
        self._inner = await self._thread.run(self._session.begin_nested)

    async def undo_inner(self) -> None:
        await self._thread.run(self._inner.rollback)

    async def close(self) -> None:
        await self._thread.run(self._session.close)
        self._thread.end()
        self._engine.dispose()


class SqlalchemyAsyncSession:
    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url, poolclass=NullPool)
        self._session = AsyncSession(self._engine)
        self._inner: Any = None

    async def send(self, request: Request[R]) -> Receipt[R]:
        return await sqlalchemy_integration.send(self._session, request)

    async def send_many(self, requests: Sequence[Request[R]]) -> list[Sent[R]]:
        return await sqlalchemy_integration.send_many(await self._session.connection(), requests)

    async def execute(self, statement: str) -> None:
        await self._session.execute(text(statement))

    async def commit(self) -> None:
        await self._session.commit()

    async def rollback(self) -> None:
        await self._session.rollback()

    async def inner(self) -> None:
        self._inner = await self._session.begin_nested()

    async def undo_inner(self) -> None:
        await self._inner.rollback()

    async def close(self) -> None:
        await self._session.close()
        await self._engine.dispose()


class Django:
    def __init__(self, url: str) -> None:
        configure_django(url)
        self._thread = InThread()
        self._atomic: list[Any] = []

    async def send(self, request: Request[R]) -> Receipt[R]:
        await self._begin()
        return await self._thread.run(lambda: django_integration.send(request))

    async def send_many(self, requests: Sequence[Request[R]]) -> list[Sent[R]]:
        await self._begin()
        return await self._thread.run(lambda: django_integration.send_many(requests, using="default"))

    async def execute(self, statement: str) -> None:
        await self._begin()
        await self._thread.run(lambda: self._execute(statement))

    async def commit(self) -> None:
        await self._thread.run(lambda: self._end(undo=False))

    async def rollback(self) -> None:
        await self._thread.run(lambda: self._end(undo=True))

    async def inner(self) -> None:
        await self._thread.run(self._enter)

    async def undo_inner(self) -> None:
        await self.rollback()

    async def close(self) -> None:
        await self._thread.run(connections.close_all)
        self._thread.end()

    async def _begin(self) -> None:
        if not self._atomic:
            await self.inner()

    def _enter(self) -> None:
        atomic = transaction.atomic()
        atomic.__enter__()
        self._atomic.append(atomic)

    def _end(self, *, undo: bool) -> None:
        if undo:
            transaction.set_rollback(True)
        self._atomic.pop().__exit__(None, None, None)

    @staticmethod
    def _execute(statement: str) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute(statement)


def configure_django(url: str) -> None:
    """Django has one configuration in a process: the database in it is each test's own."""
    found = conninfo_to_dict(url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": found["dbname"],
        "USER": found["user"],
        "HOST": found["host"],
        "PORT": found.get("port", ""),
    }
    other = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    if not settings.configured:
        settings.configure(DATABASES={"default": database, "other": other})
        django.setup()
    connections.settings["default"].update(database)


async def psycopg_async(url: str) -> Transaction:
    return PsycopgAsync(await psycopg.AsyncConnection.connect(url))


async def _made(make: Callable[[str], Transaction], url: str) -> Transaction:
    return make(url)


def sqlalchemy_url(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


OPEN: dict[str, Callable[[str], Coroutine[Any, Any, Transaction]]] = {
    "psycopg": lambda url: _made(Psycopg, url),
    "psycopg async": psycopg_async,
    "SQLAlchemy": lambda url: _made(SqlalchemySession, sqlalchemy_url(url, "psycopg")),
    "SQLAlchemy async": lambda url: _made(SqlalchemyAsyncSession, sqlalchemy_url(url, "psycopg")),
    "Django": lambda url: _made(Django, url),
}
