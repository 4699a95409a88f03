import asyncio
import time
from contextlib import suppress

import pytest

from entityq.redis.deadline import deadline


async def test_it_ends_what_takes_too_long() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with deadline(0.05):
            await asyncio.Event().wait()
    assert 0.04 < time.monotonic() - started < 2


async def test_a_blocked_loop_is_not_a_late_answer() -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    async with deadline(0.05):
        # The answer arrives while the loop is busy for longer than the whole deadline.
        loop.call_later(0.01, answer.set_result, "there")
        loop.call_soon(time.sleep, 0.2)
        assert await answer == "there"


async def test_a_cancellation_that_was_swallowed_inside_is_passed_on() -> None:
    entered = asyncio.Event()

    async def swallow() -> None:
        async with deadline(5):
            entered.set()
            # As asyncio.wait_for does when what it waits for is done at the same moment.
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    task = asyncio.create_task(swallow())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
