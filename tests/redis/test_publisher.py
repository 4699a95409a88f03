from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from entityq.entry import decode_entry
from entityq.redis.breaker import Breaker
from entityq.redis.connect import open_client
from entityq.redis.publisher import MAX_BYTES, Publisher
from entityq.redis.streams import Streams
from tests.support.servers import PrivateServers

SENDER = 77


@dataclass(frozen=True)
class Request:
    envelope: bytes


class Publishing:
    """A publisher, and what it says that no stream has."""

    def __init__(self, redis: Any, *, first: int = 1) -> None:
        self.redis = redis
        self.unpublished: list[int] = []
        self.streams: dict[int, bytes | None] = {}
        self.breaker = Breaker()
        self.publisher = Publisher(
            Streams(redis, length=10_000),
            self.breaker,
            stream_of=lambda shard_id: self.streams.get(shard_id, b"s%d" % shard_id),
            sender=SENDER,
            unpublished=self._unpublished,
            first=first,
        )

    def _unpublished(self, shard_ids: Iterable[int]) -> None:
        self.unpublished += sorted(shard_ids)

    async def publish(self, *rows: tuple[int, int]) -> None:
        """Shard id and seq; the envelope is the seq."""
        await self.publisher.publish([(Request(b"%d" % seq), shard_id, seq) for shard_id, seq in rows])

    async def stream(self, shard_id: int) -> list[tuple[int, int]]:
        """n and seq of its entries."""
        raw = await self.redis.xrange(b"s%d" % shard_id)
        entries = [decode_entry(fields) for _, fields in raw]
        assert all(entry.sender == SENDER and entry.envelope == b"%d" % entry.seq for entry in entries)
        return [(entry.n, entry.seq) for entry in entries]


@pytest.fixture
async def publishing(redis_url: str) -> AsyncIterator[Publishing]:
    async with open_client(redis_url) as redis:
        yield Publishing(redis)


async def test_numbers_are_consecutive_per_shard(publishing: Publishing) -> None:
    await publishing.publish((1, 10), (2, 11), (1, 12))
    await publishing.publish((1, 13), (2, 14))
    assert await publishing.stream(1) == [(1, 10), (2, 12), (3, 13)]
    assert await publishing.stream(2) == [(1, 11), (2, 14)]
    assert publishing.unpublished == []


async def test_a_burn_is_a_gap_in_every_shard_known_or_not(publishing: Publishing) -> None:
    await publishing.publish((1, 10))
    publishing.publisher.burn(2)
    await publishing.publish((1, 11), (2, 12))
    await publishing.publish((1, 13), (2, 14))
    assert await publishing.stream(1) == [(1, 10), (4, 11), (5, 13)]
    assert await publishing.stream(2) == [(3, 12), (4, 14)]


async def test_a_sender_can_begin_with_a_gap(redis_url: str) -> None:
    async with open_client(redis_url) as redis:
        publishing = Publishing(redis, first=2)
        await publishing.publish((1, 10), (1, 11))
        assert await publishing.stream(1) == [(2, 10), (3, 11)]


async def test_skipped_rows_take_their_numbers(publishing: Publishing) -> None:
    publishing.publisher.skip([(Request(b"10"), 1, 10), (Request(b"11"), 2, 11)])
    assert publishing.unpublished == [1, 2]
    await publishing.publish((1, 12))
    assert await publishing.stream(1) == [(2, 12)]


async def test_rows_of_an_unknown_shard_take_a_number_and_are_told(publishing: Publishing) -> None:
    """A reshard has made it: the process does not know its stream yet."""
    publishing.streams[7] = None
    await publishing.publish((1, 10), (7, 11), (1, 12))
    assert publishing.unpublished == [7]
    assert await publishing.stream(1) == [(1, 10), (3, 12)]
    publishing.streams[7] = b"s7"
    await publishing.publish((7, 13))
    assert await publishing.stream(7) == [(2, 13)], "no gap: the row before it would be found late"


async def test_a_new_shard_with_the_stream_of_an_old_one_goes_on_with_its_numbers(
    publishing: Publishing,
) -> None:
    """Entries of before a reshard can still be in the stream: the same numbers again would be old ones."""
    await publishing.publish((1, 10), (1, 11))
    publishing.streams[8] = b"s1"
    await publishing.publish((8, 12))
    assert await publishing.stream(1) == [(1, 10), (2, 11), (3, 12)]


async def test_large_batches_are_several_and_keep_their_order(publishing: Publishing) -> None:
    await publishing.publish(*[(1, seq) for seq in range(2_500)])
    assert await publishing.stream(1) == [(seq + 1, seq) for seq in range(2_500)]
    large = b"x" * (MAX_BYTES // 3)
    await publishing.publisher.publish([(Request(large), 2, seq) for seq in range(8)])
    assert await publishing.redis.xlen(b"s2") == 8


async def test_a_flushed_redis_goes_on_with_the_numbers(publishing: Publishing) -> None:
    await publishing.publish((1, 10))
    await publishing.redis.flushall()
    await publishing.publish((1, 11))
    assert await publishing.stream(1) == [(2, 11)]


async def test_a_dead_redis_never_fails_it_and_is_soon_left_alone(private_servers: PrivateServers) -> None:
    async with open_client(private_servers.redis_url) as redis:
        publishing = Publishing(redis)
        await publishing.publish((1, 10))
        private_servers.valkey.kill()
        for seq in range(11, 16):
            await publishing.publish((1, seq), (2, seq))
        assert publishing.unpublished == [1, 2] * 5
        assert not publishing.breaker.closed
        private_servers.valkey.start()
        publishing.breaker.succeeded()
        await publishing.publish((1, 16))
        assert (await publishing.stream(1))[-1] == (7, 16)
