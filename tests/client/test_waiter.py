import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from entityq.client.waiter import Waiter
from entityq.errors import Accepted, EntityQError, PayloadTooLarge, PersistenceError
from entityq.reply import EXPIRED
from tests.support.waiting import eventually_async


class Outbox:
    """Replies that can be read, and the reads; what is `gone` is not in it at all."""

    def __init__(self) -> None:
        self.replies: dict[int, bytes] = {}
        self.gone: set[int] = set()
        self.reads: list[set[int]] = []
        self.failures = 0

    async def read(self, request_ids: Sequence[int]) -> Mapping[int, bytes | None]:
        self.reads.append(set(request_ids))
        if self.failures:
            self.failures -= 1
            raise PersistenceError("down")
        return {
            request_id: self.replies.get(request_id)
            for request_id in request_ids
            if request_id not in self.gone
        }


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
async def waiter(outbox: Outbox) -> AsyncIterator[Waiter]:
    waiter = Waiter(outbox.read)
    task = asyncio.create_task(waiter.run())
    async with asyncio.timeout(10):
        yield waiter
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_channel_brings_replies_to_all_who_wait(waiter: Waiter, outbox: Outbox) -> None:
    waiting = [waiter.expect(request_id) for request_id in (1, 1, 2)]
    waiter.received([(1, b"one"), (2, b"two"), (3, b"of somebody else")])
    assert [await each.reply for each in waiting] == [b"one", b"one", b"two"]
    assert len(waiter) == 0
    assert outbox.reads == []


async def test_one_read_is_for_all_who_hear_nothing(waiter: Waiter, outbox: Outbox) -> None:
    outbox.replies = {request_id: b"%d" % request_id for request_id in range(50)}
    waiting = [waiter.expect(request_id) for request_id in range(50)]
    assert [await each.reply for each in waiting] == [b"%d" % request_id for request_id in range(50)]
    assert outbox.reads == [set(range(50))]


async def test_a_reply_that_may_be_there_already_is_read_at_once(waiter: Waiter, outbox: Outbox) -> None:
    outbox.replies = {1: b"one"}
    waiting = waiter.expect(1, at_once=True)
    async with asyncio.timeout(0.09):
        assert await waiting.reply == b"one"


async def test_a_large_reply_is_read_at_once(waiter: Waiter, outbox: Outbox) -> None:
    outbox.replies = {1: b"large"}
    waiting = waiter.expect(1)
    waiter.received([(1, None), (2, None)])
    async with asyncio.timeout(0.09):
        assert await waiting.reply == b"large"


async def test_an_interruption_makes_everybody_read(waiter: Waiter, outbox: Outbox) -> None:
    waiting = [waiter.expect(request_id) for request_id in (1, 2)]
    outbox.replies = {1: b"one", 2: b"two"}
    waiter.interrupted()
    async with asyncio.timeout(0.09):
        assert [await each.reply for each in waiting] == [b"one", b"two"]


async def test_a_failed_read_fails_nobody(waiter: Waiter, outbox: Outbox) -> None:
    outbox.replies = {1: b"one"}
    outbox.failures = 3
    assert await waiter.expect(1).reply == b"one"
    assert len(outbox.reads) == 4


async def test_who_gives_up_is_not_read_for(waiter: Waiter, outbox: Outbox) -> None:
    waiter.forget(waiter.expect(1))
    other = waiter.expect(2)
    outbox.replies = {2: b"two"}
    assert await other.reply == b"two"
    assert outbox.reads == [{2}]


async def test_a_volatile_request_is_nowhere_to_be_read(waiter: Waiter, outbox: Outbox) -> None:
    volatile = waiter.expect(1, persisted=False)
    persisted = waiter.expect(2)
    outbox.replies = {2: b"two"}
    assert await persisted.reply == b"two"
    assert outbox.reads == [{2}]
    waiter.received([(1, None)])
    with pytest.raises(PayloadTooLarge):
        await volatile.reply


async def test_closing_tells_who_waits_and_who_comes_later(waiter: Waiter) -> None:
    waiting = [waiter.expect(1), waiter.expect(2, persisted=False)]
    waiter.close()
    for each, accepted in (
        (waiting[0], Accepted.YES),
        (waiting[1], Accepted.NO),
        (waiter.expect(3), Accepted.YES),
    ):
        with pytest.raises(EntityQError, match="is closed") as refused:
            await each.reply
        assert refused.value.accepted is accepted


async def test_what_was_accepted_and_is_gone_is_not_waited_for(waiter: Waiter, outbox: Outbox) -> None:
    outbox.gone = {1}
    waiting = waiter.expect(1, at_once=True)
    assert await waiting.reply == EXPIRED


async def test_what_may_not_be_accepted_yet_is_waited_for(waiter: Waiter, outbox: Outbox) -> None:
    outbox.gone = {1}
    early, late = waiter.expect(1), waiter.expect(1, at_once=True)

    async def read_twice() -> bool:
        return len(outbox.reads) >= 2

    await eventually_async(read_twice)
    assert not early.reply.done()
    assert not late.reply.done()
    outbox.gone, outbox.replies = set(), {1: b"one"}
    assert await early.reply == b"one"
