"""A deadline for Redis that does not blame it for an event loop that was busy with other things."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

# A large batch needs some turns of the loop: it is written in parts, and then the answers are read.
SLICES = 5


@asynccontextmanager
async def deadline(seconds: float) -> AsyncGenerator[None, None]:
    """Raises TimeoutError as asyncio.timeout does.

    The time is cut into slices, and each begins when the loop has come round after the one before: an answer
    that arrived while the loop was blocked is read, and not thrown away for being seen late.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    cancelled = 0 if task is None else task.cancelling()
    part = seconds / SLICES
    handle: asyncio.TimerHandle

    def end_slice(left: int) -> None:
        nonlocal handle
        if left:
            handle = loop.call_later(part, end_slice, left - 1)
        else:
            scope.reschedule(loop.time())

    async with asyncio.timeout(None) as scope:
        handle = loop.call_later(part, end_slice, SLICES - 1)
        try:
            yield
        finally:
            handle.cancel()
    # redis-py sends through asyncio.wait_for, which, before Python 3.12, can swallow a cancellation: whoever
    # cancelled the task would wait for ever.
    if task is not None and task.cancelling() > cancelled:
        raise asyncio.CancelledError
