"""Ending tasks that lose a cancellation."""

import asyncio

from entityq.runner.tasks import end


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    started, lost = asyncio.Event(), list[str]()

    async def work() -> None:
        started.set()
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # as asyncio.wait_for of Python 3.11 when its result is there
                lost.append("lost")
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    async with asyncio.timeout(2):
        await end(task)
    assert (task.cancelled(), lost) == (True, ["lost", "lost"])


async def test_a_task_that_has_ended_is_left_alone() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await end(task)
    assert not task.cancelled()
