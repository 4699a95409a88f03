"""Publishing the requests of one sender: numbered per shard, so that a shard's owner sees every gap."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from redis.exceptions import RedisError

from entityq.entry import pack_order
from entityq.redis.breaker import Breaker
from entityq.redis.streams import Addition, Streams

MAX_ITEMS = 1_000
MAX_BYTES = 4 * 1024 * 1024


class HasEnvelope(Protocol):
    @property
    def envelope(self) -> bytes: ...


# A request, its shard id, its seq.
PublishedRow = tuple[HasEnvelope, int, int]


class Publisher:
    """Call `publish` for one batch at a time, in the order of the outbox.

    Every row that may have been committed takes a number, published or not: what the streams lack is a gap,
    and the owner of a shard that meets one reads the outbox first.
    """

    def __init__(
        self,
        streams: Streams,
        breaker: Breaker,
        *,
        stream_of: Callable[[int], bytes | None],
        sender: int,
        unpublished: Callable[[Iterable[int]], None],
        first: int = 1,
    ) -> None:
        """`stream_of` takes a shard id, and gives None for one that this process does not know (yet);
        `unpublished` is told the shard ids of what no stream has.

        `first` is the first number: from 2 on, the sender's first entry is a gap, too.
        """
        self._streams = streams
        self._breaker = breaker
        self._stream_of = stream_of
        self._sender = sender
        self._unpublished = unpublished
        self._offset = first - 1
        self._counts: dict[bytes, int] = {}

    def burn(self, count: int = 1) -> None:
        """So many rows of unknown shards may have been committed: every shard's next number has a gap."""
        self._offset += count

    async def publish(self, rows: Sequence[PublishedRow]) -> None:
        """Never fails, and takes no longer than the streams' deadline for each thousand rows."""
        additions, unpublished = self._number(rows)
        start = 0
        while start < len(additions) and self._breaker.closed:
            end = _end_of_batch(additions, start)
            if not await self._add(additions[start:end]):
                break
            start = end
        if start < len(additions):
            unpublished = {shard_id for _, shard_id, _ in rows}
        if unpublished:
            self._unpublished(unpublished)

    def skip(self, rows: Sequence[PublishedRow]) -> None:
        """Number rows that are not going to be published."""
        self._number(rows)
        self._unpublished({shard_id for _, shard_id, _ in rows})

    def _number(self, rows: Sequence[PublishedRow]) -> tuple[list[Addition], set[int]]:
        """The entries, and the shards of rows that no known stream is for."""
        # By stream, not by shard id: after a reshard a stream can still have what it had before.
        counts = self._counts
        additions: list[Addition] = []
        unknown: set[int] = set()
        for request, shard_id, seq in rows:
            stream = self._stream_of(shard_id)
            if stream is None:
                self.burn()
                unknown.add(shard_id)
                continue
            counts[stream] = count = counts.get(stream, 0) + 1
            order = pack_order(self._sender, count + self._offset, seq)
            additions.append(Addition(stream, request.envelope, order))
        return additions, unknown

    async def _add(self, additions: Sequence[Addition]) -> bool:
        try:
            await self._streams.add(additions)
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.failed(error)
            return False
        self._breaker.succeeded()
        return True


def _end_of_batch(additions: Sequence[Addition], start: int) -> int:
    size = 0
    for position in range(start, min(start + MAX_ITEMS, len(additions))):
        size += len(additions[position].envelope)
        if size > MAX_BYTES and position > start:
            return position
    return min(start + MAX_ITEMS, len(additions))
