"""The shards of one incarnation: what happens when a lease is taken and when it is given up.

taking over    lock -> epoch -> claim what others left in the stream -> catch up -> serve
giving up      stop reading -> drop what has not started -> running turns end and commit -> unlock
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from redis.exceptions import RedisError

from entityq.redis.consumer import StreamEntry, StreamGroups
from entityq.runner.activation import Activation
from entityq.runner.catching_up import CatchingUp
from entityq.runner.commit import Tenure
from entityq.runner.deferrals import Deferrals
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.residents import Residents

log = logging.getLogger(__name__)


class Tasks(Protocol):
    """Starts tasks that end with the incarnation."""

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]": ...


class Shards:
    """Implements the owner that the lease keeper talks to.

    Args:
        new_shard: makes the OwnedShard of a lease.
        deliver: dispatches a claimed stream entry.
        drop: takes the requests that have not started out of an activation's mailbox.
        wake_reader: makes the reader read the streams as they are now.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        incarnation: int,
        new_shard: Callable[[Tenure], OwnedShard],
        groups: StreamGroups,
        catching_up: CatchingUp,
        residents: Residents,
        deferrals: Deferrals,
        deliver: Callable[[OwnedShard, StreamEntry], None],
        acknowledge: Callable[[bytes, list[bytes]], None],
        drop: Callable[[Activation], None],
        wake_reader: Callable[[], None],
    ) -> None:
        self.by_id: dict[int, OwnedShard] = {}
        self.by_stream: dict[bytes, OwnedShard] = {}
        self._tasks = tasks
        self._incarnation = incarnation
        self._new_shard = new_shard
        self._groups = groups
        self._catching_up = catching_up
        self._residents = residents
        self._deferrals = deferrals
        self._deliver = deliver
        self._acknowledge = acknowledge
        self._drop = drop
        self._wake_reader = wake_reader
        self._serving: dict[int, asyncio.Task[None]] = {}

    # ----- the lease keeper's owner

    def acquired(self, shard_id: int, epoch: int) -> None:
        """The lease is ours: take the shard over."""
        owned = self._new_shard(Tenure(self._incarnation, shard_id, epoch))
        self.by_id[shard_id] = owned
        self._serving[shard_id] = self._tasks.start(self._serve(owned), f"serve {owned.shard}")

    async def release(self, shard_id: int) -> None:
        """Returns when the shard's turns are committed or dropped and its activations have ended.

        The lease keeper cancels it after the termination time: what still runs then is abandoned.
        """
        owned = self.by_id.pop(shard_id, None)
        if owned is None:
            return
        if self.by_stream.pop(owned.stream, None) is not None:
            self._wake_reader()
        self._serving.pop(shard_id).cancel()
        activations = self._residents.of_shard(shard_id)
        running = [task for activation in activations for task in activation.running]
        for activation in activations:
            self._drop(activation)
        try:
            if running:
                await asyncio.wait(running)
            await asyncio.gather(*(activation.end_instance() for activation in activations))
        finally:
            for task in running:
                if not task.done():
                    # Its handler may go on in a thread, but nobody is left to commit what it returns.
                    log.error("turn.abandoned shard=%s %s", owned.shard, task.get_name())
                    task.cancel()
            for activation in activations:
                self._residents.remove(activation)
            self._deferrals.drop_shard(shard_id)

    # ----- taking over

    async def _serve(self, owned: OwnedShard) -> None:
        claimed = await self._join_stream(owned)
        self.by_stream[owned.stream] = owned
        self._wake_reader()
        await self._catching_up.until_serving(owned)
        for entry in claimed:
            # The pass has read every accepted request; only volatile ones live in the stream alone.
            if entry.persisted:
                self._acknowledge(owned.stream, [entry.entry_id])
            else:
                self._deliver(owned, entry)
        log.debug("shard.serving shard=%s epoch=%s", owned.shard, owned.tenure.epoch)
        await self._catching_up.run(owned)

    async def _join_stream(self, owned: OwnedShard) -> list[StreamEntry]:
        try:
            await self._groups.ensure([owned.stream])
            claimed = await self._groups.claim(owned.stream)
            await self._groups.remove_consumers([owned.stream])
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("shard.stream_unavailable shard=%s: %s; served from the outbox", owned.shard, error)
            return []
        return claimed
