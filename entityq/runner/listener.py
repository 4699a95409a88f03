"""Hears, by LISTEN, which shards got requests that no stream has: sends while Redis is down, and sends in
callers' own transactions; that timers were set which are due soon; and that the cluster's facts are others. What
is missed is found by the next sweep, the next look at the timers, and the next time that the facts are read."""

import logging
from collections.abc import Callable

from psycopg import Error as PostgresError

from entityq.postgres.cancellation import cancels_channel
from entityq.postgres.channels import timers_channel
from entityq.postgres.chunks import acknowledgements_channel
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.facts import facts_channel
from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.outbox import parse_unpublished, unpublished_channel
from entityq.postgres.pinned_connection import LeaseLost
from entityq.postgres.signals import signals_channel
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)


class Listener:
    """Listens on the lease session, which is direct and lives as long as there are leases."""

    def __init__(
        self,
        session: LeaseSession,
        namespace: str,
        shards: ShardTable,
        facts: CurrentFacts,
        *,
        timer_set: Callable[[str], None],
        cancelled: Callable[[str], None],
        signalled: Callable[[str], None],
        chunk_acknowledged: Callable[[str], None],
    ) -> None:
        """Called with what is told of each timer that is due soon, of each request that was cancelled, of each entity
        whose suspended request was signalled, and of each chunk that a caller has had."""
        self._session = session
        self._timers_channel = timers_channel(namespace)
        self._timer_set = timer_set
        self._channel = unpublished_channel(namespace)
        self._facts_channel = facts_channel(namespace)
        self._cancels_channel = cancels_channel(namespace)
        self._cancelled = cancelled
        self._signals_channel = signals_channel(namespace)
        self._signalled = signalled
        self._chunks_channel = acknowledgements_channel(namespace)
        self._chunk_acknowledged = chunk_acknowledged
        self._shards = shards
        self._facts = facts

    async def run(self) -> None:
        """Returns at once: what is heard from then on makes its shard catch up."""
        try:
            # First of all statements, before a shard is acquired: a wait that a pass reads is ended by a signal that
            # nobody else will find.
            await self._session.listen(self._signals_channel, self._signalled)
            await self._session.listen(self._channel, self._heard)
            await self._session.listen(self._timers_channel, self._timer_set)
            await self._session.listen(self._cancels_channel, self._cancelled)
            await self._session.listen(self._chunks_channel, self._chunk_acknowledged)
            await self._session.listen(self._facts_channel, lambda _: self._facts.outdated())
            self._facts.outdated()  # they can have changed before anybody listened
        except LeaseLost:
            return
        except PostgresError as error:
            log.warning("listener.deaf: %s; the sweep finds what is missed", error)

    def _heard(self, payload: str) -> None:
        try:
            shard_ids = parse_unpublished(payload)
        except ValueError:
            log.warning("listener.ignored a notification that is not ours on %s", self._channel)
            return
        for shard_id in shard_ids:
            owned = self._shards.get(shard_id)
            if owned is not None:
                owned.must_catch_up()
