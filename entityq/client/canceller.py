"""Cancelling requests: what is on record is not lost, so that nothing but its storing has to succeed."""

from typing import NoReturn

from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.client.repeating import GivenUp, repeat
from entityq.errors import Accepted, EntityQError, PersistenceError
from entityq.postgres.cancellation import cancel_request
from entityq.postgres.session import Session
from entityq.retry import RetryPolicy


class Canceller:
    """Tries again under the policy, which does no harm."""

    def __init__(self, session: Session, namespace: str, policy: RetryPolicy) -> None:
        self._session = session
        self._namespace = namespace
        self._policy = policy

    async def cancel(self, request_id: int) -> CancelOutcome:
        """Raises PersistenceError when Postgres does not answer, EntityQError for an unknown request."""
        done = await repeat(
            self._session,
            lambda connection, _: cancel_request(connection, self._namespace, request_id),
            self._policy,
        )
        if isinstance(done, GivenUp):
            raise _unknown(request_id, done.error) from done.error
        return done


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
