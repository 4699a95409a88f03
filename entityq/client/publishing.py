"""What a client's inserts have stored goes to the streams, in order, while the senders go on."""

import asyncio
from collections import deque
from collections.abc import Iterable

from entityq.redis.publisher import MAX_ITEMS, PublishedRow, Publisher

# Rows that wait for a slow Redis; more are left to catching up.
MAX_WAITING = 10_000


class Publishing:
    """One publish at a time; rows that are added meanwhile go with the next."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._rows: deque[PublishedRow] = deque()
        self._added = asyncio.Event()

    def add(self, rows: Iterable[PublishedRow]) -> None:
        """In the order of the outbox."""
        self._rows.extend(rows)
        if len(self._rows) > MAX_WAITING:
            self._publisher.skip(self._rows)
            self._rows.clear()
        elif self._rows:
            self._added.set()

    def burn(self, count: int) -> None:
        """So many rows may have been committed, nobody knows where."""
        self._publisher.burn(count)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._added.wait()
            self._added.clear()
            while self._rows:
                await self._publisher.publish(self._next_rows())

    def _next_rows(self) -> list[PublishedRow]:
        return [self._rows.popleft() for _ in range(min(MAX_ITEMS, len(self._rows)))]
