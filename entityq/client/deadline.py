"""A deadline for one future: cheaper than asyncio.timeout, for thousands of waiters at once."""

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def until(future: asyncio.Future[T], deadline: float) -> T:
    """Its result by `deadline`, a time of the loop. Raises TimeoutError, which settles the future, too."""
    handle = asyncio.get_running_loop().call_at(deadline, expire, future)
    try:
        return await future
    finally:
        handle.cancel()


def expire(future: asyncio.Future[T]) -> None:
    """For `call_at`, where a coroutine more for each waiter would be one too many."""
    if not future.done():
        future.set_exception(TimeoutError())
