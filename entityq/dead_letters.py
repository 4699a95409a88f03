"""The API of the operator: requests that were given up, to look at, to requeue and to discard."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from psycopg import Error

from entityq.client.blocking import refuse_running_loop
from entityq.dead_letter import DeadLetter, DeadLetterFilter, Handled
from entityq.errors import Accepted, PersistenceError
from entityq.postgres.connect import Connection
from entityq.postgres.dead_letters import discard, list_dead_letters, read_dead_letters, requeue

T = TypeVar("T")


class DeadLetters:
    """Of one app. Everything raises PersistenceError when Postgres does not answer.

    `connect` opens a connection for one of these calls: operators come once a day.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Connection]], namespace: Callable[[], str]
    ) -> None:
        self._connect = connect
        self._namespace = namespace

    async def __call__(
        self,
        *,
        type: str | None = None,
        since: datetime | None = None,
        error: str | None = None,
        most: int = 100,
    ) -> list[DeadLetter]:
        """Those that nobody has handled, the newest first, without their causes.

        type: an entity type or task; since: given up then or later, with a time zone; error: a part of the error's
        type or text, in any case. Raises ValueError for a time without a zone.
        """
        wanted = DeadLetterFilter(type, since, error)
        return await self._run(partial(list_dead_letters, wanted=wanted, most=most))

    async def show(self, request_id: int) -> list[DeadLetter]:
        """All of one request, the newest first, with their causes: it can have died more than once."""
        return await self._run(partial(read_dead_letters, request_id=request_id))

    async def requeue(self, *request_ids: int, by: str = "") -> Handled:
        """They run again, as if they had never been tried, behind what their entities have now.

        Their replies are taken back; `by` is who did it, for the record.
        """
        return await self._run(partial(requeue, request_ids=request_ids, by=by))

    async def discard(self, *request_ids: int) -> Handled:
        """They are taken off the list, with their causes; their replies stay."""
        return await self._run(partial(discard, request_ids=request_ids))

    # ----- the same in sync code

    def list_blocking(
        self,
        *,
        type: str | None = None,
        since: datetime | None = None,
        error: str | None = None,
        most: int = 100,
    ) -> list[DeadLetter]:
        return _blocking(lambda: self(type=type, since=since, error=error, most=most))

    def show_blocking(self, request_id: int) -> list[DeadLetter]:
        return _blocking(lambda: self.show(request_id))

    def requeue_blocking(self, *request_ids: int, by: str = "") -> Handled:
        return _blocking(lambda: self.requeue(*request_ids, by=by))

    def discard_blocking(self, *request_ids: int) -> Handled:
        return _blocking(lambda: self.discard(*request_ids))

    async def _run(self, work: Callable[[Connection, str], Awaitable[T]]) -> T:
        try:
            async with self._connect() as connection:
                return await work(connection, self._namespace())
        except Error as error:
            raise PersistenceError(
                f"Postgres did not finish it: {error}",
                accepted=Accepted.UNKNOWN,
                advice="Do it again: what is done already is refused, and nothing is done twice.",
            ) from error


def _blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    refuse_running_loop()
    return asyncio.run(work())
