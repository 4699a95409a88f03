"""Catching up: reading a shard's unanswered requests from the outbox, in order, until nothing is missing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import chain

from psycopg import Error as PostgresError

from entityq.batching import Batcher
from entityq.outage import Outage
from entityq.postgres.backlog import Backlog, Row, Unread, is_cut
from entityq.runner.intake import Arrival, Verdict
from entityq.runner.owned_shard import OwnedShard

# Rows of one shard, and of all shards, in one read.
PAGE = 1_000
ROWS = 2_000
SHARDS_AT_ONCE = 1_000
PAUSE_AFTER_FAILURE = 0.2
NOT_KNOWN = -1


@dataclass(slots=True, eq=False)
class Pass:
    """How far one pass has read."""

    owned: OwnedShard
    after: int = 0
    position: int = NOT_KNOWN
    ended: bool = False


class CatchingUp:
    """Drives the passes of the shards' intakes. Shards that catch up at the same time share their reads.

    Args:
        current: whether the lease still lasts.
        room: returns when more requests may be left in the outbox.
        reserve: waits until the mailboxes have room, and keeps it for at most so many rows that are read now.
        deliver_row, deliver_arrival: what to do with a request that the intake lets through.
        give_up: acknowledges stream entries that the outbox covers.
    """

    def __init__(
        self,
        backlog: Backlog,
        *,
        current: Callable[[OwnedShard], bool],
        room: Callable[[], Awaitable[None]],
        reserve: Callable[[int], AbstractAsyncContextManager[int]],
        deliver_row: Callable[[OwnedShard, Row], bool],
        deliver_arrival: Callable[[OwnedShard, Arrival], None],
        give_up: Callable[[OwnedShard, list[bytes]], None],
        page: int = PAGE,
    ) -> None:
        self._backlog = backlog
        self._current = current
        self._room = room
        self._reserve = reserve
        self._deliver_row = deliver_row
        self._deliver_arrival = deliver_arrival
        self._give_up = give_up
        self._page = page
        self._outage = Outage(
            "shard.catching_up_failed", "shard.catching_up_works_again", "shards that catch up try again"
        )
        self._reads = Batcher[Pass, None](self._read, max_items=SHARDS_AT_ONCE, max_size=SHARDS_AT_ONCE)

    async def run(self) -> None:
        """The reads, for as long as shards catch up."""
        await self._reads.run()

    async def keep(self, owned: OwnedShard) -> None:
        """Keep one shard caught up for as long as its lease lasts."""
        while True:
            await owned.behind.wait()
            await self.until_serving(owned)

    async def until_serving(self, owned: OwnedShard) -> None:
        while owned.intake.catching_up or owned.behind.is_set():
            owned.behind.clear()
            try:
                await self._pass(owned)
            except (PostgresError, OSError):
                owned.intake.abandon_pass()
                owned.behind.set()
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _pass(self, owned: OwnedShard) -> None:
        given_up = owned.intake.begin_pass()
        self._give_up(owned, [arrival.entry_id for arrival in given_up])
        reading = Pass(owned)
        while not reading.ended:
            await self._reads.submit(reading, 1)
        self._replay(owned, reading.position)

    async def _read(self, passes: Sequence[Pass]) -> list[None]:
        """One page of each; as many shards at once as there is room for at least a row of each."""
        left = list(passes)
        while left:
            await self._room()
            async with self._reserve(min(self._page * len(left), ROWS)) as places:
                now, left = left[:places], left[places:]
                try:
                    left = await self._read_page(now, min(self._page, places // len(now))) + left
                except (PostgresError, OSError) as error:
                    self._outage.failed(error, len(passes))
                    raise
                self._outage.worked()
        return [None] * len(passes)

    async def _read_page(self, passes: list[Pass], page: int) -> list[Pass]:
        """Returns those that are still to be read, because others had filled the page."""
        starting = [reading for reading in passes if reading.position == NOT_KNOWN]
        if starting:
            # Before the first page: whoever drew a later seq had committed, or still has to commit, all its
            # earlier ones, so that no page shows a sender's later request without the earlier one.
            position = await self._backlog.position()
            for reading in starting:
                reading.position = position
        unread = [Unread(each.owned.shard_id, each.after, each.position) for each in passes]
        found = await self._backlog.read_pending(unread, page)
        last = next(reversed(found)) if is_cut(chain.from_iterable(found.values())) else None
        for number, reading in enumerate(passes):
            shard_id = reading.owned.shard_id
            # Without a wait in between: nothing is delivered for a shard that was given up meanwhile.
            if self._current(reading.owned):
                self._take(reading, found.get(shard_id, []), 0 if shard_id == last else page)
            if shard_id == last:
                return passes[number + 1 :]
        return []

    def _take(self, reading: Pass, rows: Sequence[Row], whole: int) -> None:
        """`whole`: of so many rows there may be more behind them."""
        for row in rows:
            if reading.owned.intake.take_row(row.request_id, row.seq) is Verdict.DELIVER:
                self._deliver_row(reading.owned, row)
        if len(rows) < whole:
            reading.ended = True
        else:
            reading.after = rows[-1].seq

    def _replay(self, owned: OwnedShard, position: int) -> None:
        dropped: list[bytes] = []
        for arrival, verdict in owned.intake.end_pass(position):
            if verdict is Verdict.DELIVER:
                self._deliver_arrival(owned, arrival)
            elif verdict is Verdict.DROP:
                dropped.append(arrival.entry_id)
        self._give_up(owned, dropped)
