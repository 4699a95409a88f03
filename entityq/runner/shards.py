"""The shards of one incarnation: what happens when a lease is taken and when it is given up.

taking over    lock -> epoch -> claim what others left in the stream -> catch up -> serve
giving up      stop reading -> drop what has not started -> running turns end and commit -> unlock
"""

import asyncio
import logging
from collections.abc import Callable

from redis.exceptions import RedisError

from entityq.batching import Batcher
from entityq.outage import Outage
from entityq.postgres.current_facts import CurrentFacts
from entityq.redis.consumer import StreamEntry, StreamGroups
from entityq.redis.keys import Keys
from entityq.redis.publisher import Publisher
from entityq.runner.activation import Activation
from entityq.runner.catching_up import CatchingUp
from entityq.runner.commit import Tenure
from entityq.runner.deferrals import Deferrals
from entityq.runner.intake import ShardIntake
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.residents import Residents
from entityq.runner.shard_table import ShardTable
from entityq.runner.tasks import Tasks, end

log = logging.getLogger(__name__)

JOINS_AT_ONCE = 250


class Shards:
    """Implements the owner that the lease keeper talks to.

    Args:
        outage: of the streams; the reader says when it ends.
        deliver: dispatches a claimed stream entry.
        empty_mailbox: takes the requests that have not started out of an activation.
        changed: called when the readable shards are others.
    """

    def __init__(
        self,
        table: ShardTable,
        tasks: Tasks,
        *,
        incarnation: int,
        facts: CurrentFacts,
        keys: Keys,
        new_publisher: Callable[[], Publisher],
        groups: StreamGroups,
        outage: Outage,
        catching_up: CatchingUp,
        residents: Residents,
        deferrals: Deferrals,
        deliver: Callable[[OwnedShard, StreamEntry], None],
        acknowledge: Callable[[OwnedShard, list[bytes]], None],
        empty_mailbox: Callable[[Activation], None],
        changed: Callable[[], None],
    ) -> None:
        self._table = table
        self._tasks = tasks
        self._incarnation = incarnation
        self._facts = facts
        self._keys = keys
        self._new_publisher = new_publisher
        self._catching_up = catching_up
        self._residents = residents
        self._deferrals = deferrals
        self._deliver = deliver
        self._acknowledge = acknowledge
        self._empty_mailbox = empty_mailbox
        self._changed = changed
        self._outage = outage
        self._serving: dict[int, asyncio.Task[None]] = {}
        # Shards that are acquired together join their streams together.
        self._joins = Batcher[bytes, list[StreamEntry]](
            groups.join, max_items=JOINS_AT_ONCE, max_size=JOINS_AT_ONCE
        )

    async def run(self) -> None:
        """For as long as shards are acquired."""
        await self._joins.run()

    # ----- the lease keeper's owner

    def acquired(self, shard_id: int, epoch: int) -> None:
        """The lease is ours: take the shard over."""
        shard = self._facts.shard(shard_id)
        if shard is None:  # the session, and its lock with it, is lost: a reshard has ended meanwhile
            return
        owned = OwnedShard(
            shard,
            Tenure(self._incarnation, shard_id, epoch),
            self._keys.stream(shard),
            ShardIntake(),
            self._new_publisher(),
        )
        self._table.add(owned)
        self._serving[shard_id] = self._tasks.start(self._serve(owned), f"serve {owned.shard}")

    async def release(self, shard_id: int) -> None:
        """Returns when the shard's turns are committed or dropped and its activations have ended.

        The lease keeper cancels it after the termination time: what still runs then is abandoned.
        """
        owned = self._table.remove(shard_id)
        if owned is None:
            return
        self._changed()
        try:
            # First: what it still delivers is among the activations that end here.
            await end(self._serving.pop(shard_id))
            await self._end_activations(shard_id)
        finally:
            self._abandon(owned)

    async def _end_activations(self, shard_id: int) -> None:
        activations = self._residents.of_shard(shard_id)
        for activation in activations:
            self._empty_mailbox(activation)
        running = [task for activation in activations for task in activation.running]
        if running:
            await asyncio.wait(running)
        await asyncio.gather(*(activation.end_instance() for activation in activations))

    def _abandon(self, owned: OwnedShard) -> None:
        """Nothing of the lease stays in the runner, whatever has not ended in time."""
        for activation in self._residents.of_shard(owned.shard_id):
            self._empty_mailbox(activation)
            for task in activation.running:
                # Its handler may go on in a thread, but nobody is left to commit what it returns.
                log.error("turn.abandoned shard=%s %s", owned.shard, task.get_name())
                task.cancel()
            self._residents.remove(activation)
        self._deferrals.drop_shard(owned.shard_id)
        self._table.given_up(owned)

    # ----- taking over

    async def _serve(self, owned: OwnedShard) -> None:
        claimed = await self._join_stream(owned)
        self._table.make_readable(owned)
        self._changed()
        await self._catching_up.until_serving(owned)
        for entry in claimed:
            # The pass has read every accepted request; only volatile ones live in the stream alone.
            if entry.persisted:
                self._acknowledge(owned, [entry.entry_id])
            else:
                self._deliver(owned, entry)
        log.debug("shard.serving shard=%s epoch=%s", owned.shard, owned.tenure.epoch)
        await self._catching_up.keep(owned)

    async def _join_stream(self, owned: OwnedShard) -> list[StreamEntry]:
        try:
            return await self._joins.submit(owned.stream, 1)
        except (RedisError, OSError, TimeoutError) as error:
            # Served from the outbox, until the reader has joined it.
            self._outage.failed(error)
            return []
