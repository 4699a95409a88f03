"""Catching up: reading a shard's unanswered requests from the outbox, in order, until nothing is missing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from psycopg import Error as PostgresError

from entityq.postgres.backlog import Backlog, Row
from entityq.runner.intake import Arrival, Verdict
from entityq.runner.owned_shard import OwnedShard

log = logging.getLogger(__name__)

PAGE = 1_000
PAUSE_AFTER_FAILURE = 0.2


class CatchingUp:
    """Drives the passes of the shards' intakes.

    Args:
        room: returns when more requests may be left in the outbox.
        reserve: waits until the mailboxes have room, and keeps it for at most so many rows that are read now.
        deliver_row, deliver_arrival: what to do with a request that the intake lets through.
        give_up: acknowledges stream entries that the outbox covers.
    """

    def __init__(
        self,
        backlog: Backlog,
        *,
        room: Callable[[], Awaitable[None]],
        reserve: Callable[[int], AbstractAsyncContextManager[int]],
        deliver_row: Callable[[OwnedShard, Row], bool],
        deliver_arrival: Callable[[OwnedShard, Arrival], None],
        give_up: Callable[[OwnedShard, list[bytes]], None],
        page: int = PAGE,
    ) -> None:
        self._backlog = backlog
        self._room = room
        self._reserve = reserve
        self._deliver_row = deliver_row
        self._deliver_arrival = deliver_arrival
        self._give_up = give_up
        self._page = page

    async def run(self, owned: OwnedShard) -> None:
        """Keep one shard caught up for as long as its lease lasts."""
        while True:
            await owned.behind.wait()
            await self.until_serving(owned)

    async def until_serving(self, owned: OwnedShard) -> None:
        while owned.intake.catching_up or owned.behind.is_set():
            owned.behind.clear()
            try:
                await self._pass(owned)
            except (PostgresError, OSError) as error:
                owned.intake.abandon_pass()
                log.warning("shard.catching_up_failed shard=%s: %s", owned.shard, error)
                owned.behind.set()
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _pass(self, owned: OwnedShard) -> None:
        given_up = owned.intake.begin_pass()
        self._give_up(owned, [arrival.entry_id for arrival in given_up])
        # Before the first page: whoever drew a later seq had committed, or still has to commit, all its
        # earlier ones, so that no page shows a sender's later request without the earlier one.
        position = await self._backlog.position()
        after = 0
        while True:
            await self._room()
            async with self._reserve(self._page) as page:
                rows = await self._backlog.read_pending(owned.shard_id, after, position, page)
            for row in rows:
                if owned.intake.take_row(row.request_id) is Verdict.DELIVER:
                    self._deliver_row(owned, row)
            if len(rows) < page:
                break
            after = rows[-1].seq
        self._replay(owned)

    def _replay(self, owned: OwnedShard) -> None:
        dropped: list[bytes] = []
        for arrival, verdict in owned.intake.end_pass():
            if verdict is Verdict.DELIVER:
                self._deliver_arrival(owned, arrival)
            elif verdict is Verdict.DROP:
                dropped.append(arrival.entry_id)
        self._give_up(owned, dropped)
