"""A deadline for Redis that does not blame it for an event loop that was busy with other things."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def deadline(seconds: float) -> AsyncGenerator[None, None]:
    """Raises TimeoutError as asyncio.timeout does.

    The second half begins when the loop has come round after the first: by then an answer that arrived
    while the loop was blocked has been read, and is not thrown away for being seen late.
    """
    loop = asyncio.get_running_loop()
    half = seconds / 2
    async with asyncio.timeout(None) as scope:
        handle = loop.call_later(half, lambda: scope.reschedule(loop.time() + half))
        try:
            yield
        finally:
            handle.cancel()
