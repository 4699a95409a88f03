"""From a send to its acceptance: waits for the batch, retries what is worth it, names what went wrong."""

import asyncio
import random
from itertools import count
from typing import Any

from entityq.batching import Batcher, BatcherClosed
from entityq.client.closed_groups import ClosedGroups
from entityq.client.deadline import expire, until
from entityq.client.many import PASSING, Many, Settled
from entityq.client.send import Acceptance, Held, Send
from entityq.client.settlement import GroupClosed
from entityq.errors import Accepted, MailboxFull, PersistenceError, SendTimeout
from entityq.retry import RetryPolicy, next_delay

# Bytes, about: what a row has besides its envelope.
ROW_OVERHEAD = 200

# Seconds. A held send's own lock timeout ends at its deadline, and then says for certain what became of it.
HELD_GRACE = 1.0


class Acceptor:
    """Of one client object."""

    def __init__(self, inserts: Batcher[Send | Many, Any], policy: RetryPolicy) -> None:
        self._inserts = inserts
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._numbers = count()
        self._closed = ClosedGroups(self._submit)

    async def accept(self, send: Send) -> Acceptance:
        """Raises PrimaryKeyConflict, PersistenceError, MailboxFull, MalformedMessage, SendTimeout."""
        # No coroutine in between: thousands of callers wait in this function at once.
        began, attempt, closed = self._loop.time(), 0, False
        number, give_up = next(self._numbers), began + self._policy.total
        try:
            while True:
                future = self._closed.submit(send, number, give_up)
                handle = self._loop.call_at(send.deadline, expire, future)
                try:
                    outcome = await future
                    closed = False
                    break
                except (MailboxFull, GroupClosed) as error:
                    attempt += 1
                    closed = isinstance(error, GroupClosed)
                    pause = next_delay(self._policy, attempt, self._loop.time() - began, random.random)
                    if pause is None or self._loop.time() + pause > send.deadline:
                        raise
                    if closed and not self._closed.refused(send):
                        continue
                finally:
                    handle.cancel()
                await asyncio.sleep(pause)
        except (TimeoutError, BatcherClosed) as error:
            send.abandoned = True
            if send.acceptance is None:
                raise _not_accepted(send, error) from None
            outcome = send.acceptance  # its batch still waits for others
        except asyncio.CancelledError:
            send.abandoned = True
            raise
        finally:
            self._closed.settled(send, closed=closed)
        return await self._held(send, outcome) if isinstance(outcome, Held) else outcome

    async def accept_many(self, many: Many) -> list[Settled]:
        """Raises PersistenceError, MailboxFull, MalformedMessage, SendTimeout: nothing is accepted, or it is
        unknown."""
        began, attempt = self._loop.time(), 0
        try:
            while True:
                future = self._inserts.submit(many, many.size + ROW_OVERHEAD * len(many.sends))
                handle = self._loop.call_at(many.deadline, expire, future)
                try:
                    settled: list[Settled] = await future
                    return settled
                except PASSING as error:
                    many.trouble = error.what
                    attempt += 1
                    pause = next_delay(self._policy, attempt, self._loop.time() - began, random.random)
                    if pause is None or self._loop.time() + pause > many.deadline:
                        raise
                finally:
                    handle.cancel()
                await asyncio.sleep(pause)
        except (TimeoutError, BatcherClosed) as error:
            many.abandoned = True
            if many.settled is not None:
                return many.settled  # the batches around it still wait
            raise _not_all_accepted(many, error) from None
        except asyncio.CancelledError:
            many.abandoned = True
            raise

    def _submit(self, send: Send) -> asyncio.Future[Acceptance | Held]:
        return self._inserts.submit(send, len(send.request.envelope) + ROW_OVERHEAD)

    async def _held(self, send: Send, held: Held) -> Acceptance:
        try:
            return await until(held.outcome, send.deadline + HELD_GRACE)
        except SendTimeout:
            raise
        except TimeoutError as error:
            if send.acceptance is None:
                raise _not_accepted(send, error) from None
            return send.acceptance


def _not_accepted(send: Send, error: TimeoutError | BatcherClosed) -> SendTimeout | PersistenceError:
    what = f"{send.call.message.name} to {send.call.address}"
    accepted = Accepted.UNKNOWN if send.started or send.lost else Accepted.NO
    if isinstance(error, BatcherClosed):
        return PersistenceError(
            f"The client was closed before {what} was stored",
            accepted=accepted,
            request_id=send.request.request_id,
        )
    return SendTimeout(
        f"{what} was not accepted in time{send.trouble and ': '}{send.trouble}",
        accepted=accepted,
        request_id=send.request.request_id,
        advice="Send it again, with the same primary key if it has one.",
    )


def _not_all_accepted(many: Many, error: TimeoutError | BatcherClosed) -> SendTimeout | PersistenceError:
    if isinstance(error, BatcherClosed):
        return PersistenceError(
            f"The client was closed before it had stored all: {many}", accepted=many.accepted
        )
    return SendTimeout(
        f"{many} was not accepted in time{many.trouble and ': '}{many.trouble}",
        accepted=many.accepted,
        advice="Send it again; only those with a primary key are then known.",
    )
