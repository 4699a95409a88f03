"""Ending tasks that lose a cancellation."""

import asyncio

import pytest

from entityq.runner.tasks import Tasks, end


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


async def test_a_group_ends_although_one_of_its_tasks_loses_a_cancellation() -> None:
    lost = list[str]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost.append("lost")
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        with pytest.raises(ExceptionGroup, match="unhandled"):
            async with Tasks(1) as tasks:
                tasks.start(work(), "work")
                await asyncio.sleep(0)
                raise RuntimeError("the end")
    assert lost == ["lost"]
