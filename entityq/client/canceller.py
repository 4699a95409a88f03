"""Cancelling requests: what is on record is not lost, so that nothing but its storing has to succeed."""

import asyncio
import random
from itertools import count
from typing import NoReturn

from psycopg import Error

from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.errors import Accepted, EntityQError, PersistenceError
from entityq.postgres.cancellation import cancel_request
from entityq.postgres.session import ConnectionLost, Session
from entityq.retry import RetryPolicy, next_delay


class Canceller:
    """Tries again under the policy, which does no harm."""

    def __init__(self, session: Session, namespace: str, policy: RetryPolicy) -> None:
        self._session = session
        self._namespace = namespace
        self._policy = policy

    async def cancel(self, request_id: int) -> CancelOutcome:
        """Raises PersistenceError when Postgres does not answer, EntityQError for an unknown request."""
        clock = asyncio.get_running_loop().time
        began = clock()
        for attempt in count(1):
            try:
                return await self._session.run(
                    lambda connection: cancel_request(connection, self._namespace, request_id)
                )
            except (ConnectionLost, PersistenceError, Error) as error:
                pause = next_delay(self._policy, attempt, clock() - began, random.random)
                if pause is None:
                    raise _unknown(request_id, error) from error
            await asyncio.sleep(pause)
        raise AssertionError("count() does not end")


def _unknown(request_id: int, error: Exception) -> PersistenceError:
    return PersistenceError(
        f"It is unknown whether request {request_id} was cancelled: {' '.join(str(error).split())}",
        accepted=Accepted.YES,
        request_id=request_id,
        advice="Cancel it again: that does no harm.",
    )


async def refuse_volatile(call: Call) -> NoReturn:
    """Raises EntityQError."""
    raise EntityQError(
        f"{call.message.name} to {call.address} is volatile: nothing is stored of it that could be cancelled",
        advice="Make the message persisted, or give it a timeout.",
    )
