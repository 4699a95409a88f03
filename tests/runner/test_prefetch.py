import asyncio

from entityq.runner.prefetch import Prefetch


async def is_open(prefetch: Prefetch) -> bool:
    waiting = asyncio.ensure_future(prefetch.room())
    await asyncio.sleep(0)
    done = waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    return done


async def test_reading_stops_at_the_limit_and_goes_on_at_half() -> None:
    prefetch = Prefetch(4)
    for _ in range(3):
        prefetch.add()
    assert await is_open(prefetch)
    prefetch.add()
    assert not await is_open(prefetch)
    prefetch.remove()
    assert not await is_open(prefetch)
    prefetch.remove()
    assert await is_open(prefetch)
    assert len(prefetch) == 2


async def test_what_waits_behind_a_waiting_turn_does_not_stop_reading() -> None:
    prefetch = Prefetch(4)
    for _ in range(4):
        prefetch.add()
    with prefetch.lent(4):
        assert await is_open(prefetch)
    assert not await is_open(prefetch)


async def test_readers_that_read_at_once_share_the_room() -> None:
    prefetch = Prefetch(4)
    async with prefetch.reserved(3) as first, prefetch.reserved(3) as second:
        assert (first, second) == (3, 1)
        assert not await is_open(prefetch)
    assert len(prefetch) == 0
    assert await is_open(prefetch)
