"""The control channel, with a Valkey that comes and goes."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest

from entityq.redis.connect import open_client, open_connection
from entityq.redis.control import ControlChannel, ControlMessage, Publishes, decode_control
from entityq.redis.keys import Keys
from tests.support.servers import PrivateServers
from tests.support.waiting import eventually_async

CHANNEL = Keys("tests").control_channel()
JOINED = ControlMessage("joined", {"incarnation": 2**62})


@asynccontextmanager
async def open_control(url: str) -> AsyncGenerator[tuple[ControlChannel, Publishes]]:
    """A channel that is subscribed, and the client that it publishes with."""
    async with open_client(url) as client:
        control = ControlChannel(client, open_connection(url), CHANNEL)
        receiving = asyncio.create_task(control.run())
        try:
            async with asyncio.timeout(5):
                await control.subscribed.wait()
            yield control, client
        finally:
            receiving.cancel()
            with suppress(asyncio.CancelledError):
                await receiving


async def receive(queue: "asyncio.Queue[ControlMessage]") -> ControlMessage:
    async with asyncio.timeout(5):
        return await queue.get()


async def is_off(control: ControlChannel) -> bool:
    return not control.subscribed.is_set()


def test_the_format_is_frozen() -> None:
    assert JOINED.encode() == b'{"kind":"joined","incarnation":4611686018427387904}'
    assert decode_control(JOINED.encode()) == JOINED
    assert decode_control(b'{"later":[1],"kind":"other"}') == ControlMessage("other", {"later": [1]})


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'{"kind":1}', b"\xff", b"1", pytest.param(b"[" * 100_000, id="nested")],
)
def test_what_is_no_control_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_control(data)


async def test_every_listener_of_every_process_hears_a_message(redis_url: str) -> None:
    first: asyncio.Queue[ControlMessage] = asyncio.Queue()
    second: asyncio.Queue[ControlMessage] = asyncio.Queue()
    other: asyncio.Queue[ControlMessage] = asyncio.Queue()
    async with open_control(redis_url) as (a, _), open_control(redis_url) as (b, _):
        with a.listening(first.put_nowait), b.listening(other.put_nowait):
            with a.listening(second.put_nowait):
                assert await a.publish(JOINED)
                assert [await receive(queue) for queue in (first, second, other)] == [JOINED] * 3
            await b.publish(JOINED)
            await receive(first)
            assert second.empty()


async def test_what_is_no_message_is_ignored(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    heard: asyncio.Queue[ControlMessage] = asyncio.Queue()
    async with open_control(redis_url) as (control, client):
        with control.listening(heard.put_nowait):
            await client.publish(CHANNEL, b"nonsense")
            await control.publish(JOINED)
            assert await receive(heard) == JOINED
    assert "control.ignored" in caplog.text


async def test_a_lost_redis_is_one_warning_and_is_found_again(
    private_servers: PrivateServers, caplog: pytest.LogCaptureFixture
) -> None:
    heard: asyncio.Queue[ControlMessage] = asyncio.Queue()
    async with open_control(private_servers.redis_url) as (control, _):
        with control.listening(heard.put_nowait):
            private_servers.valkey.kill()
            await eventually_async(lambda: is_off(control))
            started = time.monotonic()
            assert not await control.publish(JOINED)
            assert time.monotonic() - started < 0.5
            private_servers.valkey.start()
            async with asyncio.timeout(5):
                await control.subscribed.wait()
            assert await control.publish(JOINED)
            assert await receive(heard) == JOINED
    warnings = [record for record in caplog.records if "polling Postgres" in record.message]
    assert len(warnings) == 1


async def test_a_frozen_redis_does_not_hold_up_who_publishes(private_servers: PrivateServers) -> None:
    async with open_control(private_servers.redis_url) as (control, _):
        private_servers.valkey.freeze()
        started = time.monotonic()
        assert not await control.publish(JOINED)
        assert time.monotonic() - started < 0.5
        private_servers.valkey.thaw()
