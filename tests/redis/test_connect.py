import asyncio
import time
import traceback
from typing import Any

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError

from entityq.errors import UnsafeConfiguration
from entityq.redis import connect
from entityq.redis.connect import open_client, open_connection
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import PrivateServers
from tests.support.waiting import eventually_async

CANARY = "s3cr3t-canary"


async def test_values_come_back_as_bytes_whatever_the_url_says(redis_url: str) -> None:
    async with open_client(f"{redis_url}?decode_responses=true&protocol=3&socket_timeout=0.001") as client:
        await client.set("a", "b")
        assert await client.get("a") == b"b"


async def test_the_connections_are_named(redis_url: str) -> None:
    async with open_client(redis_url, name="entityq:5") as client:
        commands: Any = client
        assert await commands.client_getname() in ("entityq:5", b"entityq:5")


async def test_when_all_connections_are_in_use_a_command_waits(redis_url: str) -> None:
    async with open_client(redis_url, size=2) as client:
        await asyncio.gather(*(client.set(str(number), "x") for number in range(200)))
        commands: Any = client
        assert await commands.dbsize() == 200
        assert len(await commands.client_list()) == 2


async def test_nothing_is_retried() -> None:
    accepted = 0

    def close_at_once(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    async with await asyncio.start_server(close_at_once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_client(f"redis://127.0.0.1:{port}") as client:
            with pytest.raises(RedisConnectionError):
                await client.get("a")
    assert accepted == 1


async def test_an_unreachable_server_is_an_error_at_once() -> None:
    started = time.monotonic()
    async with open_client(f"redis://:{CANARY}@127.0.0.1:1/0") as client:
        with pytest.raises(RedisError) as caught:
            await client.get("a")
    assert time.monotonic() - started < 1
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(client)


async def test_a_connection_for_blocking_reads_has_no_timeout_of_its_own(redis_url: str) -> None:
    connection: Any = open_connection(redis_url, name="entityq:6")
    await connection.connect()
    try:
        await connection.send_command("BLPOP", "nothing", "0.05")
        assert await connection.read_response() is None
        assert connection.socket_timeout is None
    finally:
        await connection.disconnect()


async def test_the_client_goes_on_after_the_server_was_killed(private_servers: PrivateServers) -> None:
    async with open_client(private_servers.redis_url, size=1) as client:
        await client.set("a", "1")
        private_servers.valkey.kill()
        with pytest.raises(RedisError):
            await client.get("a")
        private_servers.valkey.start()
        await client.set("a", "2")
        assert await client.get("a") == b"2"


def test_a_write_after_a_reset_is_an_error_of_redis_with_uvloop_too(redis_url: str) -> None:
    """uvloop raises RuntimeError there, which nobody takes for a lost connection: a runner would end."""

    async def write_after_a_reset() -> None:
        async with fault_proxy(redis_url) as proxy:
            connection: Any = open_connection(proxy.url)
            await connection.connect()
            proxy.cut()

            async def write() -> bool:
                try:
                    await connection.send_command("PING")
                except RedisError:
                    return True
                return False

            await eventually_async(write, what="a failed write")
            await connection.disconnect()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write_after_a_reset())


async def test_a_cancellation_is_never_lost(redis_url: str) -> None:
    """Wherever in a command it comes; a lost one would keep a runner from stopping."""
    async with open_client(redis_url, size=1) as client:
        commands: Any = client  # redis-py's methods are typed in part

        async def ping_for_ever() -> None:
            while True:
                await commands.ping()

        for steps in range(60):
            pinging = asyncio.create_task(ping_for_ever())
            for _ in range(steps):
                await asyncio.sleep(0)
            pinging.cancel()
            done, _ = await asyncio.wait([pinging], timeout=2)
            assert done, f"it went on after a cancellation {steps} steps after its start"


@pytest.mark.parametrize("bad", [f"redis://:{CANARY}@host:port/0", f"redis://h/0?socket_timeout={CANARY}"])
def test_a_url_that_cannot_be_read_is_refused_without_its_password(bad: str) -> None:
    with pytest.raises(UnsafeConfiguration, match="is not a Redis URL") as caught:
        open_connection(bad)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_a_server_that_takes_a_connection_and_says_nothing_is_given_up(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "CONNECT_DEADLINE", 0.2)
    async with fault_proxy(redis_url) as proxy:
        proxy.black_hole()
        connection: Any = open_connection(proxy.url)
        sending = asyncio.ensure_future(connection.send_command("PING"))
        await asyncio.wait([sending], timeout=10)
        assert sending.done()
        assert isinstance(sending.exception(), TimeoutError)
        assert not connection.is_connected
        proxy.heal(existing=False)
        await connection.send_command("PING")
        assert await connection.read_response() == b"PONG"
        await connection.disconnect()


async def test_a_server_that_has_become_a_replica_is_left(
    redis_url: str, private_servers: PrivateServers
) -> None:
    async with (
        fault_proxy(private_servers.redis_url) as proxy,
        open_client(proxy.url, size=1) as client,
        open_client(private_servers.redis_url) as direct,
    ):
        await client.set("a", "b")
        commands: Any = direct
        await commands.replicaof("127.0.0.1", "1")
        proxy.redirect(redis_url)
        with pytest.raises(ReadOnlyError):
            await client.set("a", "b")
        await client.set("a", "b")
