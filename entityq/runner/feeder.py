"""Feeds entities from the outbox: whenever there is room again in a mailbox that overflowed, or a backoff ends."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from psycopg import Error as PostgresError

from entityq.address import Address
from entityq.definition import EntityDefinition
from entityq.outage import Outage
from entityq.postgres.backlog import Backlog, Row, is_cut
from entityq.runner.deferrals import Deferrals
from entityq.runner.intake import Verdict
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.residents import Residents
from entityq.runner.shard_table import ShardTable

AT_ONCE = 64
PAUSE_AFTER_FAILURE = 0.2


class Feeder:
    """One loop per runner, woken by mailboxes that drained and by activations that ended."""

    def __init__(
        self,
        backlog: Backlog,
        deferrals: Deferrals,
        residents: Residents,
        shards: ShardTable,
        definitions: Mapping[str, EntityDefinition],
        *,
        deliver: Callable[[OwnedShard, Row], bool],
        make_room: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backlog = backlog
        self._deferrals = deferrals
        self._residents = residents
        self._shards = shards
        self._definitions = definitions
        self._deliver = deliver
        self._make_room = make_room
        self._clock = clock
        self._outage = Outage(
            "entity.feed_failed", "entity.feed_works_again", "entities whose mailbox overflowed wait"
        )

    async def run(self) -> None:
        while True:
            await self._until_one_may_be_ready()
            # Cleared before looking: what drains meanwhile sets it again.
            self._deferrals.room.clear()
            before = len(self._deferrals)
            for shard_id, address in self._deferrals.oldest(AT_ONCE):
                if self._ready(shard_id, address):
                    await self._feed(shard_id, address)
                else:
                    self._deferrals.postpone(shard_id, address)
            if len(self._deferrals) < before:
                # Those behind them may be ready, and no turn of theirs is going to say so.
                self._deferrals.look_again()

    async def _until_one_may_be_ready(self) -> None:
        """There is room, or a backoff has ended."""
        while True:
            now = self._clock()
            due = self._deferrals.end_backoffs(now)
            if self._deferrals.room.is_set():
                return
            # Whatever is due earlier sets the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else due - now):
                    await self._deferrals.room.wait()

    def _ready(self, shard_id: int, address: Address) -> bool:
        if self._deferrals.in_backoff(shard_id, address):
            return False
        activation = self._residents.get(shard_id, address)
        if activation is None:
            return not self._residents.full or self._make_room()
        return activation.queued <= activation.definition.mailbox_capacity // 2

    async def _feed(self, shard_id: int, address: Address) -> None:
        owned = self._shards.get(shard_id)
        if owned is None:
            self._deferrals.drop_shard(shard_id)
            return
        page = self._definitions[address.type].mailbox_capacity + 1
        self._deferrals.begin_read(shard_id, address)
        owned.intake.begin_read()
        try:
            rows = await self._backlog.read_pending_of_entity(shard_id, address, page)
        except (PostgresError, OSError) as error:
            self._outage.failed(error)
            self._deferrals.end_read(shard_id, address, everything=False)
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
            self._deferrals.look_again()
            return
        finally:
            owned.intake.end_read()
        self._outage.worked()
        if self._shards.get(shard_id) is not owned:
            return  # given up while the read was on its way
        if self._deferrals.in_backoff(shard_id, address):
            return  # a turn has failed meanwhile: what was read is what it was before
        everything = self._admit(owned, rows) and len(rows) < page and not is_cut(rows)
        if not self._deferrals.end_read(shard_id, address, everything=everything):
            activation = self._residents.get(shard_id, address)
            if activation is None or activation.idle:
                self._deferrals.look_again()

    def _admit(self, owned: OwnedShard, rows: list[Row]) -> bool:
        """Whether all rows were admitted or known; stops at the first that was not, to keep the order."""
        owned.reading_deferred = True
        try:
            return all(
                self._deliver(owned, row)
                for row in rows
                if owned.intake.take_row(row.request_id, row.seq) is Verdict.DELIVER
            )
        finally:
            owned.reading_deferred = False
