"""Volatile messages: straight to the stream, the reply by the reply channel only."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from entityq.address import Shard
from entityq.batching import Batcher, BatcherClosed
from entityq.call import Call
from entityq.client.deadline import until
from entityq.client.encoding import Encoder
from entityq.client.reply_reader import ReplyReader
from entityq.client.settlement import unknown_type
from entityq.client.waiter import Waiter, Waiting
from entityq.errors import Accepted, EntityNotAssigned, MailboxFull, SendTimeout
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.outbox import NewRequest
from entityq.redis.publisher import MAX_BYTES, MAX_ITEMS
from entityq.redis.streams import Addition, Streams
from entityq.retry import RetryPolicy, next_delay


class VolatileSender:
    """Of one client object; what arrives during one round trip to Redis goes with the next."""

    def __init__(
        self,
        streams: Streams,
        encoder: Encoder,
        waiter: Waiter,
        reader: ReplyReader,
        *,
        stream_of: Callable[[Shard], bytes],
        facts: CurrentFacts,
        policy: RetryPolicy,
    ) -> None:
        self._streams = streams
        self._encoder = encoder
        self._waiter = waiter
        self._reader = reader
        self._stream_of = stream_of
        self._facts = facts
        self._policy = policy
        self._batcher = Batcher[Addition, None](self._flush, max_items=MAX_ITEMS, max_size=MAX_BYTES)

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._batcher.run()

    async def ask(self, call: Call, patience: float, deadline: float) -> Any:
        """`patience` in seconds, `deadline` a time of the loop.

        Raises SendTimeout when Redis does not take it; what its entity's owner refuses is tried again."""
        clock = asyncio.get_running_loop().time
        began, attempt = clock(), 0
        while True:
            attempt += 1
            waiting = await self.send(call, patience, deadline)
            try:
                return await self._reader.read(call, waiting, patience, deadline)
            except SendTimeout:
                # Nobody reads a shard that a reshard has taken away.
                self._facts.outdated()
                raise
            except (EntityNotAssigned, MailboxFull) as error:
                if isinstance(error, EntityNotAssigned):
                    self._facts.outdated()
                pause = next_delay(self._policy, attempt, clock() - began, random.random)
                if pause is None or clock() + pause > deadline:
                    raise
            finally:
                self._waiter.forget(waiting)
            await asyncio.sleep(pause)

    async def send(self, call: Call, patience: float, deadline: float) -> Waiting:
        """Its reply is expected until `Waiter.forget`. `deadline` is a time of the loop."""
        request = self._encoder.request(call, patience)
        waiting = self._waiter.expect(request.request_id, persisted=False)
        try:
            await self._add(call, request, deadline)
        except BaseException:
            self._waiter.forget(waiting)
            raise
        return waiting

    async def _add(self, call: Call, request: NewRequest, deadline: float) -> None:
        # A repeat has the same request id: the owner takes a request that it has once only.
        clock = asyncio.get_running_loop().time
        addition = self._addition(call, request)
        began, attempt = clock(), 0
        while True:
            attempt += 1
            try:
                return await until(self._batcher.submit(addition, len(request.envelope)), deadline)
            except (RedisError, OSError, TimeoutError, BatcherClosed) as error:
                pause = next_delay(self._policy, attempt, clock() - began, random.random)
                if pause is None or clock() + pause > deadline or isinstance(error, BatcherClosed):
                    raise _not_taken(call, request.request_id, error) from error
            await asyncio.sleep(pause)

    def _addition(self, call: Call, request: NewRequest) -> Addition:
        # The cluster's shard, not that of the code's shard_group: the type may have been moved.
        facts = self._facts.now
        shard_id = facts.shard_id(call.address)
        if shard_id is None:
            raise unknown_type(call.address.type, facts.namespace, request.request_id)
        return Addition(self._stream_of(facts.shard(shard_id)), request.envelope)

    async def _flush(self, additions: Sequence[Addition]) -> Sequence[None]:
        await self._streams.add(additions)
        return [None] * len(additions)


def _not_taken(call: Call, request_id: int, error: Exception) -> SendTimeout:
    refused = SendTimeout(
        f"Redis did not take {call.message.name} to {call.address}, which is volatile: {error or 'no answer'}",
        accepted=Accepted.NO,
        request_id=request_id,
        advice="Volatile messages need Redis: send it again when it is back, or make the message persisted.",
    )
    refused.retryable = True
    return refused
