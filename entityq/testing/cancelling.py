"""Cancels in a test client."""

import asyncio
from collections.abc import Callable, Mapping

from entityq.cancel_outcome import CancelOutcome
from entityq.codec import Limits
from entityq.envelope import decode_envelope
from entityq.errors import EntityQError
from entityq.reply import Outcome, Reply, decode_reply
from entityq.runner.activation import Activation
from entityq.runner.answers import cancelled_reply
from entityq.runner.commit import Commit, Tenure
from entityq.runner.request import Request
from entityq.runner.residents import Residents
from entityq.testing.memory_outbox import SHARD, MemoryOutbox
from entityq.testing.memory_signals import MemorySignals
from entityq.testing.waiting import Waiting

TENURE = Tenure(incarnation=1, shard_id=SHARD, epoch=1)


class Cancelling:
    """`answer`: tells who waits for a reply; `drained`: what an activation says whose turn has ended."""

    def __init__(
        self,
        replies: Mapping[int, "asyncio.Future[bytes]"],
        waiting: Waiting,
        residents: Residents,
        signals: MemorySignals,
        *,
        outbox: MemoryOutbox,
        answer: Callable[[Request, Reply], None],
        drained: Callable[[Activation], None],
        envelopes: Limits,
        limits: Limits,
    ) -> None:
        self._replies = replies
        self._waiting = waiting
        self._residents = residents
        self._signals = signals
        self._outbox = outbox
        self._answer = answer
        self._drained = drained
        self._envelopes = envelopes
        self._limits = limits

    async def cancel(self, request_id: int) -> CancelOutcome:
        """Raises EntityQError for a request that is not known."""
        reply = self._replies.get(request_id)
        if reply is None:
            raise EntityQError(f"This test client has no request {request_id}")
        if reply.done():
            ended = decode_reply(request_id, reply.result()).outcome
            return CancelOutcome.CANCELLED if ended is Outcome.INTERRUPTED else CancelOutcome.ANSWERED
        request = self._waiting.take_out(request_id)
        if request is not None:
            await self._end(Request(decode_envelope(request.envelope, self._envelopes), SHARD, 0, None))
            return CancelOutcome.CANCELLED
        # Of one that waits for a signal, the next attempt is its end.
        self._signals.cancel(request_id)
        for activation in self._residents:
            waiting = activation.take_out(request_id)
            if waiting is not None:
                await self._end(waiting)
                self._drained(activation)
                return CancelOutcome.CANCELLED
            if activation.interrupt(request_id):
                break
        return CancelOutcome.REQUESTED

    async def _end(self, request: Request) -> None:
        """Of one that has not started."""
        reply = cancelled_reply(request, self._limits)
        await self._outbox.commit(Commit(TENURE, request, reply, reply.encode()))
        self._answer(request, reply)
