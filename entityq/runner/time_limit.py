"""How long a handler may run: `time_limit` of a message."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

from entityq.runner.request import Request

log = logging.getLogger(__name__)


class TimeLimitExceeded(Exception):
    """What a turn raises that took longer than its message allows: a defect."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it took longer than its time limit of {seconds:g} s")


async def limited(handler: Awaitable[Any], seconds: float | None) -> Any:
    """Cancels a handler that runs longer. Raises TimeLimitExceeded, also if that did not keep it from ending
    in another way."""
    if seconds is None:
        return await handler
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            result = await handler
    except Exception as error:
        if limit.expired():
            raise TimeLimitExceeded(seconds) from error
        raise
    if limit.expired():
        raise TimeLimitExceeded(seconds)
    return result


async def limited_thread(handler: "asyncio.Future[Any]", seconds: float | None, request: Request) -> Any:
    """A thread cannot be interrupted: its handler is let run to its end, so that no other turn begins before, and
    what it comes to is ignored. Raises TimeLimitExceeded then."""
    if seconds is None:
        return await handler
    try:
        done, _ = await asyncio.wait([handler], timeout=seconds)
        if done:
            return handler.result()
        log.warning(
            "turn.over_time_limit request=%s entity=%s seconds=%g: it runs in a thread, and is waited for",
            request.request_id,
            request.envelope.address,
            seconds,
        )
        await asyncio.wait([handler])
    finally:
        # Of a turn that is cancelled: nobody waits for the thread then.
        handler.cancel()
    raise TimeLimitExceeded(seconds) from handler.exception()
