"""A part of the turn's transaction, as a handler writes it."""

from collections.abc import Generator
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Any

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from entityq.ports import OwnTransaction


class TransactionBlock:
    """What `self.context.transaction()` returns. In a handler that is an `async def`:

        async with self.context.transaction() as connection:    # or: connection = await self.context.transaction()
            await connection.execute("INSERT INTO ...")

    and `with` in one that is a plain function. The block is a savepoint: where it ends with an error, what it did is
    undone, and a handler that catches the error can go on. Nothing is committed before the turn is.
    """

    def __init__(self, own: OwnTransaction) -> None:
        self._own = own
        self._stack = AsyncExitStack()
        self._blocking_stack = ExitStack()

    def __await__(self) -> Generator[Any, Any, AsyncConnection[TupleRow]]:
        return self._own.begin().__await__()

    async def __aenter__(self) -> AsyncConnection[TupleRow]:
        connection = await self._own.begin()
        await self._stack.enter_async_context(connection.transaction())
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    def __enter__(self) -> Connection[TupleRow]:
        connection = self._own.begin_blocking()
        self._blocking_stack.enter_context(connection.transaction())
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._blocking_stack.__exit__(kind, error, trace)
