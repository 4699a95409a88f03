"""Consumers of a stream's group: who is removed by the shard's next owner."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from entityq.redis.connect import open_client, open_connection
from entityq.redis.consumer import (
    CLAIM_PAGE,
    GONE_MS,
    ReadSize,
    StreamEntry,
    StreamGroups,
    StreamReader,
    idle_consumers,
)
from entityq.redis.keys import CONSUMER_GROUP


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with open_client(redis_url) as client:
        yield client


async def consumers(redis: Any, stream: str) -> set[bytes]:
    return {each["name"] for each in await redis.xinfo_consumers(stream, CONSUMER_GROUP)}


async def test_a_consumer_that_has_just_read_is_left(redis: Any, redis_url: str) -> None:
    """Between the look and the removal it could be given an entry, which would be lost with it."""
    own = StreamGroups(redis, b"own")
    await own.join([b"s"])
    reader = StreamReader(open_connection(redis_url), b"other")
    try:
        assert await reader.read([b"s"], count=1, block=0.001) == []
        assert await own.join([b"s"]) == [[]]
        assert b"other" in await consumers(redis, "s")
        await redis.xadd("s", {"e": "x"})
        assert len(await reader.read([b"s"], count=1, block=1)) == 1
    finally:
        await reader.close()


async def test_streams_are_joined_together_and_each_one_is_claimed_to_its_end(
    redis: Any, redis_url: str
) -> None:
    streams = [b"none", b"some", b"many"]
    reader = StreamReader(open_connection(redis_url), b"other")
    other, own = StreamGroups(redis, b"other"), StreamGroups(redis, b"own")
    await other.join(streams[1:])
    counts = {b"none": 0, b"some": 3, b"many": CLAIM_PAGE + 3}
    for stream in streams:
        for number in range(counts[stream]):
            await redis.xadd(stream, {"e": number})
    try:
        assert len(await reader.read(streams[1:], count=2 * CLAIM_PAGE, block=1)) == CLAIM_PAGE + 6
    finally:
        await reader.close()
    for claimed, stream in zip(await own.join(streams), streams, strict=True):
        assert [entry.fields[b"e"] for entry in claimed] == [b"%d" % n for n in range(counts[stream])]
        assert {entry.stream for entry in claimed} <= {stream}
    assert (await redis.xpending(b"many", CONSUMER_GROUP))["consumers"] == [
        {"name": b"own", "pending": CLAIM_PAGE + 3}
    ]


async def test_a_consumer_that_is_gone_is_removed(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = StreamGroups(redis, b"own")
    await own.join([b"s"])
    await redis.xgroup_createconsumer("s", CONSUMER_GROUP, "gone")
    monkeypatch.setattr("entityq.redis.consumer.GONE_MS", 0)
    await own.join([b"s"])
    assert b"gone" not in await consumers(redis, "s")


def test_only_others_that_are_gone_and_have_nothing_pending_are_removed() -> None:
    def consumer(name: bytes, pending: int, idle: int) -> list[Any]:
        return [b"name", name, b"pending", pending, b"idle", idle, b"inactive", -1]

    described = [
        consumer(b"own", 0, GONE_MS),
        consumer(b"gone", 0, GONE_MS),
        consumer(b"reads", 0, GONE_MS - 1),
        consumer(b"has some", 1, GONE_MS),
    ]
    assert idle_consumers(described, b"own") == [b"gone"]


def entries(size: int, count: int = 10) -> list[StreamEntry]:
    return [StreamEntry(b"s", b"1-0", {b"e": bytes(size)})] * count


def test_large_entries_make_the_next_read_small_at_once_and_small_ones_a_larger_one_later() -> None:
    size = ReadSize(most_bytes=1_000_000, expected=10_000)
    assert (size.count(1, 1_000), size.count(10, 1_000), size.count(10, 5)) == (100, 10, 5)
    size.read(entries(100_000))
    assert (size.count(1, 1_000), size.count(10, 1_000), size.count(1_000, 1_000)) == (10, 1, 1)
    size.read(entries(0))
    assert size.count(1, 1_000) == 12
    size.read([])
    for _ in range(100):
        size.read([*entries(100), StreamEntry(b"s", b"2-0", {})])
    assert size.count(1, 1_000) == 1_000
