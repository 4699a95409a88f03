"""The receiving half of the streams: consumer groups, blocking reads, claims, acknowledgements."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from entityq.redis.deadline import deadline
from entityq.redis.keys import CONSUMER_GROUP
from entityq.redis.pipelines import execute

CLAIM_PAGE = 1_000
# What one read is to bring at most, and how large an entry is taken for at first.
READ_BYTES = 8 * 1024 * 1024
EXPECTED_BYTES = 16_384
# Seconds for an answer. Whoever takes longer is given up, and the outbox is read instead: a connection whose
# other end is gone says nothing.
SLACK = 1.0
PENDING_DEADLINE = 2.0
# A wake stream that nobody uses any more goes by itself; a reader that misses its group makes it anew.
WAKE_EXPIRY_MS = 86_400_000
# A reader asks again at least every few seconds.
GONE_MS = 60_000


class GroupMissing(Exception):
    """A stream or its consumer group is gone: Redis was flushed, or restarted empty."""


@dataclass(slots=True)
class StreamEntry:
    """A raw stream entry; `fields` is empty when the entry was deleted while it was pending."""

    stream: bytes
    entry_id: bytes
    fields: dict[bytes, bytes]

    @property
    def persisted(self) -> bool:
        """Whether the outbox has it too. A deleted entry counts as such: only its owner deletes one."""
        return not self.fields or b"o" in self.fields


class StreamReader:
    """One blocking reader over many streams, on a connection of its own.

    Raises RedisError and OSError where the connection fails; after any of them the caller must read its
    own pending entries first (`pending`), because a reply that was lost on the way is only there.
    """

    def __init__(self, connection: AbstractConnection, consumer: bytes) -> None:
        self._connection = connection
        self._consumer = consumer

    async def read(self, streams: Sequence[bytes], *, count: int, block: float) -> list[StreamEntry]:
        """New entries of `streams`, at most `count` of each; waits up to `block` seconds for the first."""
        milliseconds = str(max(1, int(block * 1000))).encode()
        command = [b"COUNT", str(count).encode(), b"BLOCK", milliseconds, b"STREAMS"]
        reply = await self._call(*command, *streams, *([b">"] * len(streams)), seconds=block + SLACK)
        return parse_entries(reply)

    async def pending(self, after: Mapping[bytes, bytes], *, count: int) -> list[StreamEntry]:
        """This consumer's own unacknowledged entries behind the given ids, up to `count` of each stream."""
        reply = await self._call(
            b"COUNT", str(count).encode(), b"STREAMS", *after, *after.values(), seconds=PENDING_DEADLINE
        )
        return parse_entries(reply)

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)

    async def _call(self, *arguments: bytes, seconds: float) -> Any:
        connection = self._connection
        try:
            async with deadline(seconds):
                if not connection.is_connected:
                    await connection.connect()  # type: ignore[no-untyped-call]  # redis-py has no types here
                await connection.send_command(
                    b"XREADGROUP", b"GROUP", CONSUMER_GROUP, self._consumer, *arguments
                )
                return cast("Any", await connection.read_response())
        except ResponseError as error:
            if str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise GroupMissing(str(error)) from error
            raise
        except BaseException:
            # A reply that nobody read must not be taken for the reply of the next command.
            await connection.disconnect(nowait=True)
            raise


def parse_entries(reply: Any) -> list[StreamEntry]:
    """The entries of an XREADGROUP reply in RESP2, stream by stream in the order of each stream."""
    streams: Iterable[tuple[bytes, Any]] = reply or ()
    return [
        StreamEntry(stream, entry_id, dict(zip(fields[::2], fields[1::2], strict=True)) if fields else {})
        for stream, entries in streams
        for entry_id, fields in entries
    ]


class ReadSize:
    """How many entries to ask for, so that a read of large ones does not fill the memory: XREADGROUP counts
    entries, not bytes. What it goes by is the size of those that came before.
    """

    def __init__(self, *, most_bytes: int = READ_BYTES, expected: float = EXPECTED_BYTES) -> None:
        self._most_bytes = most_bytes
        self._average = expected

    def count(self, streams: int, most: int) -> int:
        """Of each of so many streams, at most `most`, at least one."""
        return max(1, min(most, int(self._most_bytes / self._average / streams)))

    def read(self, entries: Sequence[StreamEntry]) -> None:
        """Larger ones count at once, smaller ones little by little."""
        if entries:
            size = sum(len(value) for entry in entries for value in entry.fields.values())
            average = max(1.0, size / len(entries))
            self._average = max(average, 0.8 * self._average + 0.2 * average)


class StreamGroups:
    """Consumer groups, claims and acknowledgements, pipelined on the shared client."""

    def __init__(self, redis: Redis, consumer: bytes, *, deadline: float = 1.0) -> None:
        self._redis = redis
        self._consumer = consumer
        self._deadline = deadline

    async def join(self, streams: Sequence[bytes]) -> list[list[StreamEntry]]:
        """Take streams over, many in one round trip: their groups exist, and what other consumers left pending
        is this one's. Returns that, for each stream in its order.
        """
        pipeline: Any = self._redis.pipeline(transaction=False)
        for stream in streams:
            pipeline.execute_command("XGROUP", "CREATE", stream, CONSUMER_GROUP, "0", "MKSTREAM")
            self._ask_for_claim(pipeline, stream, b"0-0")
            pipeline.execute_command("XINFO", "CONSUMERS", stream, CONSUMER_GROUP)
        async with asyncio.timeout(self._deadline):
            results: list[Any] = await pipeline.execute(raise_on_error=False)
        _raise_other_than_busygroup(results)
        claimed = [
            await self._claim(stream, *page[:2]) for stream, page in zip(streams, results[1::3], strict=True)
        ]
        await self._remove_consumers(dict(zip(streams, results[2::3], strict=True)))
        return claimed

    async def _claim(self, stream: bytes, cursor: bytes, entries: Iterable[Any]) -> list[StreamEntry]:
        """The first page of a claim, and all that follow."""
        claimed: list[StreamEntry] = []
        while True:
            claimed += [StreamEntry(stream, entry_id, fields or {}) for entry_id, fields in entries]
            if cursor == b"0-0":
                return claimed
            pipeline: Any = self._redis.pipeline(transaction=False)
            self._ask_for_claim(pipeline, stream, cursor)
            ((cursor, entries, *_),) = await self._execute(pipeline)

    def _ask_for_claim(self, pipeline: Any, stream: bytes, cursor: bytes) -> None:
        pipeline.execute_command(
            "XAUTOCLAIM", stream, CONSUMER_GROUP, self._consumer, 0, cursor, "COUNT", CLAIM_PAGE
        )

    async def acknowledge(self, entries: Mapping[bytes, Sequence[bytes]]) -> None:
        """XACK and XDEL, per stream. Raises RedisError, OSError or TimeoutError."""
        pipeline: Any = self._redis.pipeline(transaction=False)
        for stream, entry_ids in entries.items():
            pipeline.execute_command("XACK", stream, CONSUMER_GROUP, *entry_ids)
            pipeline.execute_command("XDEL", stream, *entry_ids)
        await self._execute(pipeline)

    async def wake(self, stream: bytes) -> None:
        """One entry, so that a blocking read that includes `stream` returns."""
        pipeline: Any = self._redis.pipeline(transaction=False)
        pipeline.execute_command("XADD", stream, "MAXLEN", 1, "*", "w", "")
        pipeline.execute_command("PEXPIRE", stream, WAKE_EXPIRY_MS)
        await self._execute(pipeline)

    async def _remove_consumers(self, found: Mapping[bytes, Iterable[Sequence[Any]]]) -> None:
        """Remove other consumers that have nothing pending and have not read for long.

        One that still reads could be given an entry between the look and the removal, which would lose it.
        """
        removal: Any = self._redis.pipeline(transaction=False)
        for stream, consumers in found.items():
            for name in idle_consumers(consumers, self._consumer):
                removal.execute_command("XGROUP", "DELCONSUMER", stream, CONSUMER_GROUP, name)
        if len(removal):
            await self._execute(removal)

    async def _execute(self, pipeline: Any) -> list[Any]:
        async with asyncio.timeout(self._deadline):
            return await execute(pipeline)


def _raise_other_than_busygroup(results: Iterable[Any]) -> None:
    for result in results:
        if isinstance(result, RedisError) and not str(result).startswith("BUSYGROUP"):
            raise result


def idle_consumers(consumers: Iterable[Sequence[Any]], own: bytes) -> list[bytes]:
    """Names of other consumers without pending entries that are gone, from an XINFO CONSUMERS reply in RESP2."""
    described: list[dict[bytes, Any]] = [dict(zip(each[::2], each[1::2], strict=True)) for each in consumers]
    gone = [each for each in described if each[b"pending"] == 0 and each[b"idle"] >= GONE_MS]
    return [each[b"name"] for each in gone if each[b"name"] != own]
