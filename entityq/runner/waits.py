"""The steps around an attempt that waits for a signal, or has waited."""

import math
import time
from typing import NoReturn

from psycopg import Error as PostgresError

from entityq.runner.commit import NotApplied
from entityq.runner.request import Request
from entityq.runner.suspensions import Suspension
from entityq.runner.turn_ends import TurnDropped, TurnSuspended
from entityq.runner.turn_signals import Signals


async def has_waited(signals: Signals, request: Request) -> bool:
    """A request that has was started in time, however late the signal comes. Raises TurnDropped."""
    if not request.envelope.persisted:
        return False
    try:
        return await signals.has_waited(request.request_id)
    except (PostgresError, OSError) as error:
        raise _dropped(error) from None


async def resume(signals: Signals, request: Request) -> None:
    """Where it has waited in vain, that is settled before the handler can fail for another reason.

    Raises TurnDropped.
    """
    if request.suspended:
        try:
            await signals.end_wait(request)
        except PostgresError as error:
            raise _dropped(error) from None


async def suspend(signals: Signals, suspension: Suspension) -> NoReturn:
    """Raises TurnSuspended when it is on record, otherwise TurnDropped."""
    as_of = time.monotonic()
    try:
        signalled = await signals.suspend(suspension)
    except PostgresError as error:
        raise _dropped(error) from None
    if signalled is None:
        raise TurnDropped(NotApplied("the request is answered or cancelled, or its lease is gone"))
    if signalled:
        raise TurnSuspended(suspension.name, 0.0, parked=False, as_of=as_of)
    delay = math.inf if suspension.timeout is None else suspension.timeout
    raise TurnSuspended(suspension.name, delay, parked=suspension.parked, as_of=as_of)


def _dropped(error: PostgresError | OSError) -> TurnDropped:
    return TurnDropped(NotApplied(f"its signals cannot be read or written: {error}", passing=True))
