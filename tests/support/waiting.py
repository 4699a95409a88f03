"""Waiting for a condition, with a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_POLL = 0.01


def eventually(predicate: Callable[[], T], seconds: float = 5.0, what: str = "the condition") -> T:
    """Calls `predicate` until it returns something true, and returns that; fails after that many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not become true within {seconds:g} s")
        time.sleep(_POLL)
    return value


async def eventually_async(
    predicate: Callable[[], Awaitable[T]], seconds: float = 5.0, what: str = "the condition"
) -> T:
    """The same for a coroutine function, on the running loop."""
    deadline = time.monotonic() + seconds
    while not (value := await predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not become true within {seconds:g} s")
        await asyncio.sleep(_POLL)
    return value
