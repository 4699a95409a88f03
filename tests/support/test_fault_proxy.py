"""The proxy does to real servers what a bad network does."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import psycopg
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from entityq.redis.connect import open_client
from tests.support.fault_proxy import FaultProxy, ProxyProcess, fault_proxy, proxy_process
from tests.support.servers import PrivateServers
from tests.support.waiting import eventually_async

PAYLOAD = b"x" * 8_000_000


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Redis]:
    async with open_client(proxy.url, size=1) as client:
        await client.set("a", 1)
        yield client


async def count(client: Redis) -> int:
    return int(await client.incr("a"))


async def unanswered(task: "asyncio.Task[int]", seconds: float = 0.2) -> bool:
    _, pending = await asyncio.wait([task], timeout=seconds)
    return bool(pending)


async def test_postgres_through_it(postgres_url: str) -> None:
    async with fault_proxy(postgres_url) as proxy:
        async with await psycopg.AsyncConnection.connect(proxy.url) as connection:
            cursor = await connection.execute(
                "SELECT current_database(), current_user, repeat('x', 3000000), %s", ["y" * 3_000_000]
            )
            row = await cursor.fetchone()
        assert row is not None
        assert f"/{row[0]}?" in postgres_url
        assert row[1:] == ("postgres", "x" * 3_000_000, "y" * 3_000_000)


async def test_cut_ends_connections_and_a_new_one_works(proxy: FaultProxy, client: Redis) -> None:
    assert proxy.connections == 1
    proxy.cut()
    with pytest.raises(RedisConnectionError):
        await count(client)
    assert await count(client) == 2


async def test_refuse_is_for_new_connections(proxy: FaultProxy, client: Redis) -> None:
    proxy.refuse()
    assert await count(client) == 2
    async with open_client(proxy.url) as other:
        with pytest.raises(RedisConnectionError, match="Connect call failed"):
            await other.incr("a")
        proxy.heal()
        assert await count(other) == 3


async def test_a_black_hole_to_the_server_delivers_after_it_is_healed(
    proxy: FaultProxy, client: Redis, redis_url: str
) -> None:
    proxy.black_hole(to_client=False)
    task = asyncio.create_task(count(client))
    assert await unanswered(task)
    async with open_client(redis_url) as direct:
        assert await direct.get("a") == b"1"
    proxy.heal()
    assert await task == 2


async def test_a_black_hole_to_the_client_loses_the_answer(
    proxy: FaultProxy, client: Redis, redis_url: str
) -> None:
    proxy.black_hole(to_server=False)
    task = asyncio.create_task(count(client))
    async with open_client(redis_url) as direct:

        async def counted() -> bool:
            return await direct.get("a") == b"2"

        await eventually_async(counted)
        assert not task.done()
        proxy.cut()
        with pytest.raises(RedisConnectionError):
            await task


async def test_neither_end_is_told_of_an_end_in_a_black_hole(proxy: FaultProxy, redis_url: str) -> None:
    parts = urlsplit(proxy.url)
    async with open_client(redis_url) as direct:
        first, second = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(2)]
        for reader, writer in (first, second):
            writer.write(b"PING\r\n")
            assert await reader.readline() == b"+PONG\r\n"
        proxy.black_hole()
        first[1].close()
        ended = asyncio.create_task(second[0].read())
        await cast("Any", direct).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        _, pending = await asyncio.wait([ended], timeout=0.2)
        assert pending
        assert proxy.connections == 2
        proxy.heal()
        assert await asyncio.wait_for(ended, 5) == b""
        second[1].close()


async def test_delay_in_each_direction(proxy: FaultProxy, client: Redis) -> None:
    proxy.delay(0.1)
    started = time.monotonic()
    assert await count(client) == 2
    assert time.monotonic() - started >= 0.2
    proxy.heal()
    assert await count(client) == 3


async def test_throttle_keeps_every_byte(proxy: FaultProxy, client: Redis) -> None:
    proxy.throttle(1_000_000, to_client=False)
    started = time.monotonic()
    await client.set("b", PAYLOAD[:300_000])
    assert time.monotonic() - started >= 0.25
    assert await client.get("b") == PAYLOAD[:300_000]


async def test_new_connections_only(proxy: FaultProxy, client: Redis) -> None:
    proxy.black_hole(existing=False)
    assert await count(client) == 2
    async with open_client(proxy.url) as other:
        task = asyncio.create_task(count(other))
        assert await unanswered(task)
        proxy.heal()
        assert await task == 3


async def test_what_was_lost_stays_lost_while_new_connections_are_healed(
    proxy: FaultProxy, client: Redis
) -> None:
    proxy.black_hole()
    task = asyncio.create_task(count(client))
    proxy.heal(existing=False)
    async with open_client(proxy.url) as other:
        assert await count(other) == 2
    assert await unanswered(task)
    proxy.heal()
    assert await task == 3


async def test_redirected_connections_go_to_another_server(
    proxy: FaultProxy, client: Redis, private_servers: PrivateServers
) -> None:
    proxy.redirect(private_servers.redis_url)
    async with open_client(proxy.url) as other:
        assert await other.get("a") is None
    assert await count(client) == 2


async def test_megabytes_go_through(client: Redis) -> None:
    await client.set("b", PAYLOAD)
    assert await client.get("b") == PAYLOAD


@pytest.fixture
def process(redis_url: str) -> Iterator[ProxyProcess]:
    with proxy_process(redis_url) as process:
        yield process


async def test_a_process_of_its_own(process: ProxyProcess, redis_url: str) -> None:
    async with open_client(process.url, size=1) as client, open_client(redis_url) as direct:
        assert await count(client) == 1
        process.black_hole(to_client=False)
        task = asyncio.create_task(count(client))
        assert await unanswered(task)
        process.cut()
        process.refuse()
        with pytest.raises(RedisConnectionError):
            await task
        with pytest.raises(RedisConnectionError):
            await count(client)
        process.heal()
        process.delay(0.05)
        started = time.monotonic()
        assert await count(client) == 2
        assert time.monotonic() - started >= 0.1
        assert await direct.get("a") == b"2"
