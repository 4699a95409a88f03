"""Cancels in a test client."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from entityq.cancel_outcome import CancelOutcome
from entityq.codec import Limits
from entityq.envelope import decode_envelope
from entityq.errors import EntityQError
from entityq.reply import Outcome, decode_reply
from entityq.runner.activation import Activation
from entityq.runner.request import Request
from entityq.runner.residents import Residents
from entityq.testing.memory_outbox import SHARD
from entityq.testing.memory_signals import MemorySignals
from entityq.testing.waiting import Waiting


class Cancelling:
    """`answer`: of a request that has not started; `drained`: what an activation says whose turn has ended."""

    def __init__(
        self,
        replies: Mapping[int, "asyncio.Future[bytes]"],
        waiting: Waiting,
        residents: Residents,
        signals: MemorySignals,
        *,
        answer: Callable[[Request], Awaitable[None]],
        drained: Callable[[Activation], None],
        envelopes: Limits,
    ) -> None:
        self._replies = replies
        self._waiting = waiting
        self._residents = residents
        self._signals = signals
        self._answer = answer
        self._drained = drained
        self._envelopes = envelopes

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
            await self._answer(Request(decode_envelope(request.envelope, self._envelopes), SHARD, 0, None))
            return CancelOutcome.CANCELLED
        # Of one that waits for a signal, the next attempt is its end.
        self._signals.cancel(request_id)
        for activation in self._residents:
            waiting = activation.take_out(request_id)
            if waiting is not None:
                await self._answer(waiting)
                self._drained(activation)
                return CancelOutcome.CANCELLED
            if activation.interrupt(request_id):
                break
        return CancelOutcome.REQUESTED
