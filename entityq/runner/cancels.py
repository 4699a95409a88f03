"""Cancelled requests of the owned shards: what has not started is answered, what runs is interrupted.

Who is told of a cancel reads the request again: the mark in the database is what counts, and a lost or a made-up
notification does no harm. The sweep finds what nobody has told.
"""

import asyncio
import logging
from collections.abc import Callable

from psycopg import Error as PostgresError

from entityq.outage import Outage
from entityq.postgres.backlog import Backlog, Row
from entityq.postgres.cancellation import parse_cancel
from entityq.runner.activations import Activations
from entityq.runner.answers import Answers
from entityq.runner.deferrals import Deferrals
from entityq.runner.intake import Verdict
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.residents import Residents
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)

PAGE = 500
PAUSE_AFTER_FAILURE = 0.2


class Cancels:
    """One loop per runner; `deliver` is for a row that the intake lets through."""

    def __init__(
        self,
        backlog: Backlog,
        shards: ShardTable,
        residents: Residents,
        deferrals: Deferrals,
        *,
        activations: Activations,
        answers: Answers,
        deliver: Callable[[OwnedShard, Row], bool],
    ) -> None:
        self._backlog = backlog
        self._shards = shards
        self._residents = residents
        self._deferrals = deferrals
        self._activations = activations
        self._answers = answers
        self._deliver = deliver
        # Shard ids and seqs, in the order in which they were heard of.
        self._told: dict[tuple[int, int], None] = {}
        self._wanted = asyncio.Event()
        self._outage = Outage("cancels.failed", "cancels.work_again", "what was cancelled goes on meanwhile")

    def heard(self, payload: str) -> None:
        """A notification."""
        try:
            shard_id, seq = parse_cancel(payload)
        except ValueError:
            log.warning("cancels.ignored a notification that is not ours")
            return
        self.look_at(shard_id, seq)

    def look_at(self, shard_id: int, seq: int) -> None:
        """A request that was cancelled, as somebody says."""
        if shard_id in self._shards:
            self._told[shard_id, seq] = None
            self._wanted.set()

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            places = list(self._told)[:PAGE]
            try:
                found = await self._read(places)
            except (PostgresError, OSError) as error:
                self._outage.failed(error)
                await asyncio.sleep(PAUSE_AFTER_FAILURE)
                continue
            self._outage.worked()
            for place in places:
                del self._told[place]
            if not self._told:
                self._wanted.clear()
            for owned, rows in found:
                for row in rows:
                    self._cancel(owned, row)

    async def _read(self, places: list[tuple[int, int]]) -> list[tuple[OwnedShard, list[Row]]]:
        """Of the shards that are owned before and after the read."""
        reading = {shard_id: self._shards.get(shard_id) for shard_id, _ in places}
        asked = [owned for owned in reading.values() if owned is not None]
        for owned in asked:
            owned.intake.begin_read()
        try:
            found = await self._backlog.read_cancelled(places)
        finally:
            for owned in asked:
                owned.intake.end_read()
        return [(owned, found.get(owned.shard_id, [])) for owned in asked if self._shards.owns(owned)]

    def _cancel(self, owned: OwnedShard, row: Row) -> None:
        log.info("request.cancelled request=%s entity=%s", row.request_id, row.address)
        activation = self._residents.get(owned.shard_id, row.address)
        if activation is not None and activation.interrupt(row.request_id):
            return
        waiting = None if activation is None else self._activations.take_out(activation, row.request_id)
        if waiting is not None:
            self._answers.cancelled(owned, waiting)
        elif (
            owned.intake.take_row(row.request_id, row.seq) is Verdict.DELIVER or row.address in owned.blocked
        ):
            # To be answered, it need not be known to this code.
            self._deliver(owned, row)
        # What is behind it in a backoff has nothing to wait for any more.
        self._deferrals.end_backoff(owned.shard_id, row.address)
