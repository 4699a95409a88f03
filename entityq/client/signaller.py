"""Sending signals: tried again under the policy, which does no harm, because only the first value counts."""

import asyncio
import random
from functools import partial
from itertools import count

from psycopg import Error

from entityq.errors import Accepted, PersistenceError
from entityq.postgres.session import ConnectionLost, Session
from entityq.postgres.signals import store_signal
from entityq.retry import RetryPolicy, next_delay
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
        clock = asyncio.get_running_loop().time
        began, unknown = clock(), False
        for attempt in count(1):
            store = partial(store_signal, namespace=self._namespace, place=place, value=value, again=unknown)
            try:
                return await self._session.run(store)
            except (ConnectionLost, PersistenceError, Error) as error:
                unknown = unknown or isinstance(error, ConnectionLost)
                pause = next_delay(self._policy, attempt, clock() - began, random.random)
                if pause is None:
                    raise _failed(place, error, unknown=unknown) from error
            await asyncio.sleep(pause)
        raise AssertionError("count() does not end")


def _failed(place: SignalPlace, error: Exception, *, unknown: bool) -> PersistenceError:
    stored = "It is unknown whether" if unknown else "It was not stored that"
    return PersistenceError(
        f"{stored} request {place.request_id} was signalled {place.name!r}: {' '.join(str(error).split())}",
        accepted=Accepted.UNKNOWN if unknown else Accepted.NO,
        request_id=place.request_id,
        advice="Signal it again with the same token: that does no harm.",
    )
