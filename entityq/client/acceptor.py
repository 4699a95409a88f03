"""From a send to its acceptance: waits for the batch, retries what is worth it, names what went wrong."""

import asyncio
import random

from entityq.batching import Batcher, BatcherClosed
from entityq.client.deadline import until
from entityq.client.send import Acceptance, Held, Send
from entityq.errors import Accepted, MailboxFull, PersistenceError, SendTimeout
from entityq.retry import RetryPolicy, next_delay

# Bytes, about: what a row has besides its envelope.
ROW_OVERHEAD = 200

# Seconds. A held send's own lock timeout ends at its deadline, and then says for certain what became of it.
HELD_GRACE = 1.0


class Acceptor:
    """Of one client object."""

    def __init__(self, inserts: Batcher[Send, Acceptance | Held], policy: RetryPolicy) -> None:
        self._inserts = inserts
        self._policy = policy

    async def accept(self, send: Send) -> Acceptance:
        """Raises PrimaryKeyConflict, PersistenceError, MailboxFull, MalformedMessage, SendTimeout."""
        clock = asyncio.get_running_loop().time
        began, attempt = clock(), 0
        while True:
            attempt += 1
            try:
                return await self._insert(send)
            except MailboxFull:
                pause = next_delay(self._policy, attempt, clock() - began, random.random)
                if pause is None or clock() + pause > send.deadline:
                    raise
            await asyncio.sleep(pause)

    async def _insert(self, send: Send) -> Acceptance:
        size = len(send.request.envelope) + ROW_OVERHEAD
        try:
            outcome = await until(self._inserts.submit(send, size), send.deadline)
            if isinstance(outcome, Held):
                outcome = await until(outcome.outcome, send.deadline + HELD_GRACE)
        except TimeoutError as error:
            if isinstance(error, SendTimeout):
                raise
            raise _not_in_time(send) from None
        except BatcherClosed as closed:
            raise _closed(send, closed) from None
        return outcome


def _not_in_time(send: Send) -> SendTimeout:
    return SendTimeout(
        f"{send.call.message.name} to {send.call.address} was not accepted in time",
        accepted=Accepted.UNKNOWN if send.started else Accepted.NO,
        request_id=send.request.request_id,
        advice="Send it again, with the same primary key if it has one.",
    )


def _closed(send: Send, closed: BatcherClosed) -> PersistenceError:
    return PersistenceError(
        f"The client was closed before {send.call.message.name} to {send.call.address} was stored",
        accepted=Accepted.UNKNOWN if closed.started else Accepted.NO,
        request_id=send.request.request_id,
    )
