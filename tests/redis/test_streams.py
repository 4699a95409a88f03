import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError

from entityq.entry import Entry, decode_entry, pack_order
from entityq.redis.connect import open_client
from entityq.redis.streams import Addition, Streams
from tests.support.servers import PrivateServers


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with open_client(redis_url) as client:
        yield client


async def entries(redis: Any, stream: bytes) -> list[Entry]:
    return [decode_entry(fields) for _, fields in await redis.xrange(stream)]


async def test_entries_arrive_in_order_in_their_streams(redis: Any) -> None:
    streams = Streams(redis, length=1_000)
    await streams.add(
        [Addition(b"a", b"e%d" % n, pack_order(7, n, 70 + n)) for n in (1, 2)] + [Addition(b"b", b"volatile")]
    )
    assert await entries(redis, b"a") == [Entry(b"e1", 7, 1, 71), Entry(b"e2", 7, 2, 72)]
    assert await entries(redis, b"b") == [Entry(b"volatile")]


async def test_a_stream_is_trimmed_roughly(redis: Any) -> None:
    streams = Streams(redis, length=100)
    for _ in range(3):
        await streams.add([Addition(b"a", b"e") for _ in range(1_000)])
    assert 100 <= await redis.xlen(b"a") <= 300


async def test_a_refused_entry_is_raised_and_the_connection_stays_in_step(redis: Any) -> None:
    streams = Streams(redis, length=100)
    await redis.set(b"text", b"not a stream")
    with pytest.raises(ResponseError):
        await streams.add([Addition(b"a", b"1"), Addition(b"text", b"2"), Addition(b"a", b"3")])
    await streams.add([Addition(b"a", b"4")])
    assert [entry.envelope for entry in await entries(redis, b"a")] == [b"1", b"3", b"4"]
    assert await redis.get(b"text") == b"not a stream"


async def test_cancelled_in_the_middle_the_next_batch_does_not_read_its_replies(redis: Any) -> None:
    streams = Streams(redis, length=10_000)
    for _ in range(20):
        async with asyncio.TaskGroup() as tasks:
            adding = tasks.create_task(streams.add([Addition(b"a", b"x" * 1_000) for _ in range(500)]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            adding.cancel()
        before = await redis.xlen(b"b")
        await streams.add([Addition(b"b", b"e")])
        assert await redis.xlen(b"b") == before + 1


async def test_a_frozen_server_costs_the_deadline_and_a_dead_one_is_an_error(
    private_servers: PrivateServers,
) -> None:
    async with open_client(private_servers.redis_url) as redis:
        streams = Streams(redis, length=100)
        await streams.add([Addition(b"a", b"1")])
        private_servers.valkey.freeze()
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await streams.add([Addition(b"a", b"2")])
        assert asyncio.get_running_loop().time() - started < 1
        private_servers.valkey.thaw()
        private_servers.valkey.kill()
        with pytest.raises((RedisError, OSError)):
            await streams.add([Addition(b"a", b"3")])
