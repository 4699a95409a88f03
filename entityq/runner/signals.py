"""The signals that turns of one incarnation wait for."""

import logging
from collections.abc import Callable, Mapping

from entityq.batching import Batcher
from entityq.errors import MalformedMessage
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.signals import SignalRows, StoredSignal, parse_signalled
from entityq.runner.deferrals import Deferrals
from entityq.runner.request import Request
from entityq.runner.shard_table import ShardTable
from entityq.runner.suspensions import Suspension, Suspensions

log = logging.getLogger(__name__)

BATCH = 1_000


class RunnerSignals:
    """A Signals, in Postgres: reads on the pool, writes on the session that holds the leases."""

    def __init__(
        self,
        session: LeaseSession,
        rows: SignalRows,
        facts: CurrentFacts,
        shards: ShardTable,
        deferrals: Deferrals,
        *,
        timer_in: Callable[[float], None],
    ) -> None:
        """`timer_in`: told of a timer that was set, and is due in so many seconds."""
        self._rows = rows
        self._facts = facts
        self._shards = shards
        self._deferrals = deferrals
        self._timer_in = timer_in
        self._suspensions = Suspensions(session, session.epochs)
        self._batcher = Batcher[Suspension, bool | None](
            self._suspensions.flush, max_items=BATCH, max_size=BATCH
        )

    async def run(self) -> None:
        await self._batcher.run()

    def heard(self, payload: str) -> None:
        """A notification: a request that waits at the head of its entity has its signal."""
        try:
            shard_id, address = parse_signalled(payload)
        except (ValueError, MalformedMessage):
            log.warning("signals.ignored a notification that is not ours")
            return
        if shard_id in self._shards:
            self._deferrals.signalled(shard_id, address)

    # ----- Signals

    @property
    def key(self) -> bytes:
        return self._facts.now.signal_key

    async def read(self, request_id: int) -> Mapping[str, StoredSignal]:
        return await self._rows.read(request_id)

    async def has_waited(self, request_id: int) -> bool:
        return await self._rows.has_waited(request_id)

    async def suspend(self, suspension: Suspension) -> bool | None:
        signalled = await self._batcher.submit(suspension, 1)
        if signalled is False and suspension.parked and suspension.timeout is not None:
            self._timer_in(suspension.timeout)
        return signalled

    async def end_wait(self, request: Request) -> None:
        await self._suspensions.end_wait(request)
