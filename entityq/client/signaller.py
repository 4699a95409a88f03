"""Sending signals: tried again under the policy, which does no harm, because only the first value counts."""

from entityq.client.repeating import GivenUp, repeat
from entityq.errors import Accepted, PersistenceError
from entityq.postgres.session import Session
from entityq.postgres.signals import store_signal
from entityq.retry import RetryPolicy
from entityq.signal_outcome import SignalOutcome
from entityq.signal_token import SignalPlace


class Signaller:
    """`session` is any connection of the client's."""

    def __init__(self, session: Session, namespace: str, policy: RetryPolicy) -> None:
        self._session = session
        self._namespace = namespace
        self._policy = policy

    async def signal(self, place: SignalPlace, value: bytes) -> SignalOutcome:
        """Raises PersistenceError when Postgres does not answer, or a reshard takes too long."""
        done = await repeat(
            self._session,
            lambda connection, again: store_signal(
                connection, namespace=self._namespace, place=place, value=value, again=again
            ),
            self._policy,
        )
        if isinstance(done, GivenUp):
            raise _failed(place, done.error, unknown=done.unknown) from done.error
        return done


def _failed(place: SignalPlace, error: Exception, *, unknown: bool) -> PersistenceError:
    stored = "It is unknown whether" if unknown else "It was not stored that"
    return PersistenceError(
        f"{stored} request {place.request_id} was signalled {place.name!r}: {' '.join(str(error).split())}",
        accepted=Accepted.UNKNOWN if unknown else Accepted.NO,
        request_id=place.request_id,
        advice="Signal it again with the same token: that does no harm.",
    )
