import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest

from entityq.batching import Batcher, BatcherClosed


class Recorder:
    """A flush that waits for permission, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = asyncio.Event()
        self.allowed = asyncio.Event()
        self.active = 0

    async def flush(self, items: Sequence[int]) -> list[int | BaseException]:
        self.active += 1
        assert self.active == 1, "two flushes at once"
        self.batches.append(list(items))
        self.started.set()
        await self.allowed.wait()
        self.active -= 1
        return [ValueError(item) if item < 0 else item * 10 for item in items]


@asynccontextmanager
async def running(batcher: Batcher[int, int]) -> AsyncGenerator[asyncio.Task[None]]:
    async with asyncio.timeout(10):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(batcher.run())
            yield task
            batcher.close()


async def test_what_arrives_during_a_flush_goes_with_the_next_in_order() -> None:
    recorder = Recorder()
    batcher = Batcher[int, int](recorder.flush, max_items=100, max_size=100)
    async with running(batcher):
        first = batcher.submit(1, 1)
        await recorder.started.wait()
        later = [batcher.submit(item, 1) for item in (5, 3, 4)]
        recorder.allowed.set()
        assert await asyncio.gather(first, *later) == [10, 50, 30, 40]
    assert recorder.batches == [[1], [5, 3, 4]]


async def test_an_outcome_that_is_an_exception_is_raised_at_its_submitter_alone() -> None:
    recorder = Recorder()
    recorder.allowed.set()
    batcher = Batcher[int, int](recorder.flush, max_items=100, max_size=100)
    async with running(batcher):
        good, bad = batcher.submit(1, 1), batcher.submit(-1, 1)
        assert await good == 10
        with pytest.raises(ValueError, match="-1"):
            await bad


async def test_a_flush_is_bounded_in_items_and_in_size_and_a_large_item_goes_alone() -> None:
    recorder = Recorder()
    recorder.allowed.set()
    batcher = Batcher[int, int](recorder.flush, max_items=3, max_size=10)
    async with running(batcher):
        sizes = [1, 1, 1, 1, 9, 5, 50, 5]
        await asyncio.gather(*[batcher.submit(item, size) for item, size in enumerate(sizes)])
    assert recorder.batches == [[0, 1, 2], [3, 4], [5], [6], [7]]


async def test_who_gives_up_before_the_flush_is_not_in_it() -> None:
    recorder = Recorder()
    batcher = Batcher[int, int](recorder.flush, max_items=100, max_size=100)
    async with running(batcher):
        first = batcher.submit(1, 1)
        await recorder.started.wait()
        cancelled, expired, kept = (batcher.submit(item, 1) for item in (2, 3, 4))
        cancelled.cancel()
        expired.set_exception(TimeoutError())
        # In the flush already: it stays there, and nobody is told.
        first.cancel()
        recorder.allowed.set()
        assert await kept == 40
        with pytest.raises(TimeoutError):
            await expired
    assert recorder.batches == [[1], [4]]


async def test_an_error_of_the_flush_itself_is_everybodys_and_the_next_flush_goes_on() -> None:
    failures = iter([RuntimeError("broken")])

    async def flush(items: Sequence[int]) -> list[int | BaseException]:
        for failure in failures:
            raise failure
        return list(items)

    batcher = Batcher[int, int](flush, max_items=100, max_size=100)
    async with running(batcher):
        results = await asyncio.gather(*[batcher.submit(item, 1) for item in (1, 2)], return_exceptions=True)
        assert [str(result) for result in results] == ["broken", "broken"]
        assert await batcher.submit(3, 1) == 3


async def test_a_flush_that_forgets_an_item_is_an_error_and_not_a_hang() -> None:
    async def flush(items: Sequence[int]) -> list[int | BaseException]:
        return list(items[1:])

    batcher = Batcher[int, int](flush, max_items=100, max_size=100)
    async with running(batcher):
        with pytest.raises(RuntimeError, match="1 items returned 0 outcomes"):
            await batcher.submit(1, 1)


async def test_close_fails_what_waits_and_lets_the_flush_under_way_end() -> None:
    recorder = Recorder()
    batcher = Batcher[int, int](recorder.flush, max_items=100, max_size=100)
    async with running(batcher) as task:
        first = batcher.submit(1, 1)
        await recorder.started.wait()
        waiting = batcher.submit(2, 1)
        batcher.close()
        with pytest.raises(BatcherClosed) as refused:
            await waiting
        assert not refused.value.started
        recorder.allowed.set()
        assert await first == 10
        await task
        with pytest.raises(BatcherClosed):
            await batcher.submit(3, 1)
    assert recorder.batches == [[1]]


async def test_cancelling_the_run_leaves_nobody_waiting() -> None:
    recorder = Recorder()
    batcher = Batcher[int, int](recorder.flush, max_items=100, max_size=100)
    task = asyncio.create_task(batcher.run())
    first = batcher.submit(1, 1)
    await recorder.started.wait()
    waiting = batcher.submit(2, 1)
    task.cancel()
    in_flight, queued = await asyncio.gather(first, waiting, return_exceptions=True)
    assert isinstance(in_flight, BatcherClosed)
    assert in_flight.started
    assert isinstance(queued, BatcherClosed)
    assert not queued.started
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_storm_of_cancellations_loses_no_other_item() -> None:
    recorder = Recorder()
    recorder.allowed.set()
    batcher = Batcher[int, int](recorder.flush, max_items=7, max_size=1_000)
    async with running(batcher):
        futures = [batcher.submit(item, 1) for item in range(500)]
        for item in range(0, 500, 3):
            futures[item].cancel()
        results = await asyncio.gather(*futures, return_exceptions=True)
    for item, result in enumerate(results):
        assert isinstance(result, asyncio.CancelledError) if item % 3 == 0 else result == item * 10
    assert [item for batch in recorder.batches for item in batch] == [item for item in range(500) if item % 3]
