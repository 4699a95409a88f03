"""What follows a commit, with Redis standing for anything that may fail."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from entityq.runner.announcer import Announcer
from entityq.runner.commit import SentRow
from entityq.runner.owned_shard import OwnedShard
from tests.support.waiting import eventually_async


class Redis:
    """Remembers what it was given; `broken` refuses the replies, `gate` keeps them waiting."""

    def __init__(self) -> None:
        self.replies: list[Mapping[int, Sequence[tuple[int, bytes]]]] = []
        self.acknowledged: list[Mapping[bytes, Sequence[bytes]]] = []
        self.wakes = 0
        self.broken = False
        self.refusals = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def publish_replies(self, replies: Mapping[int, Sequence[tuple[int, bytes]]]) -> None:
        self.entered.set()
        await self.gate.wait()
        if self.broken:
            raise RedisConnectionError("gone")
        self.replies.append({client: list(pairs) for client, pairs in replies.items()})

    async def acknowledge(self, entries: Mapping[bytes, Sequence[bytes]]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ResponseError("NOPERM")
        self.acknowledged.append({stream: list(ids) for stream, ids in entries.items()})

    async def publish_requests(self, owned: OwnedShard, rows: Sequence[SentRow]) -> None:
        raise AssertionError(f"{owned} {rows}")

    async def wake_reader(self) -> None:
        self.wakes += 1


@asynccontextmanager
async def announcing(redis: Redis) -> AsyncGenerator[Announcer]:
    announcer = Announcer(
        publish_replies=redis.publish_replies,
        acknowledge=redis.acknowledge,
        publish_requests=redis.publish_requests,
        wake_reader=redis.wake_reader,
    )
    running = asyncio.create_task(announcer.run(), name="announcer")
    try:
        yield announcer
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_what_comes_during_one_announcement_goes_with_the_next() -> None:
    redis = Redis()
    async with announcing(redis) as announcer:
        redis.gate.clear()
        announcer.reply(1, 10, b"a")
        await redis.entered.wait()
        announcer.reply(1, 11, b"b")
        announcer.reply(2, 12, b"c")
        announcer.entry(b"s", b"1-0")
        announcer.entry(b"s", b"2-0")
        announcer.shards_changed()
        redis.gate.set()
        await announcer.drain(5)
    assert redis.replies == [{1: [(10, b"a")]}, {1: [(11, b"b")], 2: [(12, b"c")]}]
    assert redis.acknowledged == [{b"s": [b"1-0", b"2-0"]}]
    assert redis.wakes == 1


async def test_one_failure_keeps_nothing_else_from_being_announced() -> None:
    redis = Redis()
    redis.broken = True
    async with announcing(redis) as announcer:
        announcer.reply(1, 10, b"a")
        announcer.entry(b"s", b"1-0")
        await announcer.drain(5)
        redis.broken = False
        announcer.reply(1, 11, b"b")
        await announcer.drain(5)
    assert redis.acknowledged == [{b"s": [b"1-0"]}]
    assert redis.replies == [{1: [(11, b"b")]}]


async def test_replies_that_hang_do_not_hold_up_acknowledgements() -> None:
    redis = Redis()
    redis.gate.clear()
    async with announcing(redis) as announcer:
        announcer.reply(1, 10, b"a")
        announcer.entry(b"s", b"1-0")
        await eventually_async(lambda: _true(redis.acknowledged))


async def test_what_could_not_be_acknowledged_is_acknowledged_later(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    redis = Redis()
    redis.refusals = 4  # the breaker opens, and its first try fails
    async with announcing(redis) as announcer:
        for entry in (b"1-0", b"2-0", b"3-0", b"4-0"):
            announcer.entry(b"s", entry)
            await announcer.drain(5)
        await eventually_async(lambda: _true(redis.acknowledged))
    assert redis.acknowledged == [{b"s": [b"1-0", b"2-0", b"3-0", b"4-0"]}]
    assert [line.split()[0] for line in caplog.messages] == [
        "redis.acknowledge_failed:",
        "redis.acknowledge_works_again",
    ]


async def _true(value: object) -> bool:
    return bool(value)


async def test_a_drain_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    redis = Redis()
    redis.gate.clear()
    async with announcing(redis) as announcer:
        announcer.reply(1, 10, b"a")
        await announcer.drain(0.01)
    assert "announcer.not_drained" in caplog.text


async def test_a_drain_without_work_returns_at_once() -> None:
    async with announcing(Redis()) as announcer:
        await announcer.drain(0.01)
