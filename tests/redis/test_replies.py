import asyncio
from collections.abc import Iterable
from typing import Any

import msgpack
import pytest
from redis.exceptions import ResponseError

from entityq.redis.connect import open_client, open_connection
from entityq.redis.keys import Keys
from entityq.redis.replies import (
    MAX_INLINE,
    MAX_MESSAGE,
    Pair,
    ReplyPublisher,
    ReplySubscription,
    decode_replies,
    encode_replies,
)
from tests.support.servers import PrivateServers


def test_message_is_frozen() -> None:
    assert encode_replies([(1, b"r1"), (2, b"r2")]) == [bytes.fromhex("9201929201c40272319202c4027232")]
    assert decode_replies(bytes.fromhex("9201929201c40272319202c0")) == [(1, b"r1"), (2, None)]


def test_a_large_reply_is_left_to_the_outbox() -> None:
    (message,) = encode_replies([(1, b"x" * MAX_INLINE), (2, b"x" * (MAX_INLINE + 1))])
    assert decode_replies(message) == [(1, b"x" * MAX_INLINE), (2, None)]


def test_many_replies_are_several_messages_of_a_bounded_size() -> None:
    replies = [(n, b"x" * 200_000) for n in range(20)]
    messages = encode_replies(replies)
    assert max(map(len, messages)) < MAX_MESSAGE + 10_000
    assert [pair for message in messages for pair in decode_replies(message)] == replies


@pytest.mark.parametrize(
    "value", [None, [2, []], [1], [1, [[1]]], [1, [["1", b""]]], [1, [[1, "text"]]], [1, [1]], {}]
)
def test_what_is_no_message_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="reply message"):
        decode_replies(msgpack.packb(value))


def test_bytes_that_are_not_msgpack_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_replies(b"\xc1")


class Heard:
    """What one subscription was told."""

    def __init__(self, redis_url: str, channel: bytes) -> None:
        self.pairs: asyncio.Queue[Pair] = asyncio.Queue()
        self.interruptions: asyncio.Queue[None] = asyncio.Queue()
        self.subscription = ReplySubscription(
            open_connection(redis_url),
            channel,
            received=self._received,
            interrupted=lambda: self.interruptions.put_nowait(None),
        )

    def _received(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            self.pairs.put_nowait(pair)

    async def __aenter__(self) -> "Heard":
        self._task = asyncio.create_task(self.subscription.run())
        await asyncio.wait_for(self.subscription.subscribed.wait(), 5)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_each_client_gets_its_replies(redis_url: str, namespace: str) -> None:
    keys = Keys(namespace)
    async with (
        open_client(redis_url) as redis,
        Heard(redis_url, keys.reply_channel(1)) as one,
        Heard(redis_url, keys.reply_channel(2)) as two,
    ):
        await ReplyPublisher(redis, keys).publish(
            {1: [(11, b"a"), (12, b"b")], 2: [(21, b"c")], 3: [(31, b"d")]}
        )
        async with asyncio.timeout(5):
            assert [await one.pairs.get(), await one.pairs.get()] == [(11, b"a"), (12, b"b")]
            assert await two.pairs.get() == (21, b"c")
        assert one.pairs.empty()
        assert two.pairs.empty()


async def test_what_anybody_else_publishes_is_ignored(redis_url: str, namespace: str) -> None:
    keys = Keys(namespace)
    channel = keys.reply_channel(1)
    async with open_client(redis_url) as redis, Heard(redis_url, channel) as heard:
        for noise in (b"", b"\xc1", b"noise", msgpack.packb({"a": 1})):
            await publish(redis, channel, noise)
        await ReplyPublisher(redis, keys).publish({1: [(11, b"a")]})
        assert await asyncio.wait_for(heard.pairs.get(), 5) == (11, b"a")


async def publish(redis: Any, channel: bytes, message: bytes) -> None:
    await redis.publish(channel, message)


async def test_a_lost_connection_is_renewed_and_reported(private_servers: PrivateServers) -> None:
    keys = Keys("any")
    url = private_servers.redis_url
    async with asyncio.timeout(30), Heard(url, keys.reply_channel(1)) as heard:
        await heard.interruptions.get()
        await asyncio.to_thread(private_servers.valkey.kill)
        await asyncio.to_thread(private_servers.valkey.start)
        await heard.interruptions.get()
        async with open_client(url) as redis:
            await ReplyPublisher(redis, keys).publish({1: [(11, b"a")]})
        assert await heard.pairs.get() == (11, b"a")


async def test_an_error_does_not_tell_what_was_in_the_reply(private_servers: PrivateServers) -> None:
    async with open_client(private_servers.redis_url) as redis:
        commands: Any = redis
        await commands.execute_command("ACL", "SETUSER", "default", "-publish")
        publisher = ReplyPublisher(redis, Keys("n"))
        with pytest.raises(ResponseError, match="no permissions") as caught:
            await publisher.publish({1: [(2, b"s3cr3t-canary")]})
    assert "canary" not in str(caught.value)
