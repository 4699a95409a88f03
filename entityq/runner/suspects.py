"""Requests that may have ended the processes that ran them: one at a time, and marked before their turn."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager

from psycopg import Error as PostgresError

from entityq.postgres.pinned_connection import LeaseLost
from entityq.postgres.queries import load
from entityq.runner.commit import Tenure
from entityq.runner.committer import LeaseStatements
from entityq.runner.request import Request

log = logging.getLogger(__name__)

_QUERIES = load("attempts.sql")
_MARK, _CLEAR = _QUERIES["mark_started"], _QUERIES["clear_started"]


class NotMarked(Exception):
    """The request is answered, or its lease is gone: it must not run."""


class Suspects:
    """Of one incarnation.

    Args:
        epochs: the leases held right now, by shard id.
        waiting: entered while a suspect waits for another one's turn: it then holds no place that others may need.
    """

    def __init__(
        self,
        session: LeaseStatements,
        epochs: Mapping[int, int],
        *,
        waiting: Callable[[Request], AbstractContextManager[None]],
    ) -> None:
        self._session = session
        self._epochs = epochs
        self._waiting = waiting
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, request: Request, tenure: Tenure) -> AsyncGenerator[None, None]:
        """Around the turn of a suspect. Raises NotMarked, psycopg.Error and LeaseLost before it."""
        with self._waiting(request):
            await self._alone.acquire()
        try:
            await self._mark(request, tenure)
            try:
                yield
            except BaseException:
                await self._clear(request, tenure)
                raise
        finally:
            self._alone.release()

    async def _mark(self, request: Request, tenure: Tenure) -> None:
        log.warning(
            "request.suspected request=%s entity=%s lost=%s: processes have ended with it, so it runs alone",
            request.request_id,
            request.envelope.address,
            request.lost,
        )
        place = {"incarnation": tenure.incarnation, **_place(request)}
        if not self._current(tenure) or not await self._session.execute(_MARK, place):
            raise NotMarked("the request is answered, or its lease is gone")

    async def _clear(self, request: Request, tenure: Tenure) -> None:
        """Otherwise it would be blamed for what others do."""
        if not self._current(tenure):
            return
        try:
            await self._session.execute(_CLEAR, _place(request))
        except (PostgresError, LeaseLost) as error:
            log.warning("request.still_marked request=%s: %s", request.request_id, error)

    def _current(self, tenure: Tenure) -> bool:
        return (
            tenure.incarnation == self._session.incarnation
            and self._epochs.get(tenure.shard_id) == tenure.epoch
        )


def _place(request: Request) -> dict[str, object]:
    return {"shard_id": request.shard_id, "seq": request.seq, "request_id": request.request_id}
