"""How many requests a runner has read and not yet answered: bounded, so that a backlog stays in Postgres."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager


class Prefetch:
    """Reading stops at `limit` and goes on at half of it: in pages, not in single rows."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return self._count

    def add(self, count: int = 1) -> None:
        self._count += count
        if self._count >= self._limit:
            self._room.clear()

    def remove(self, count: int = 1) -> None:
        self._count -= count
        if self._count <= self._limit // 2:
            self._room.set()

    @contextmanager
    def lent(self, places: int) -> Generator[None]:
        """For the time that a turn waits for another one, which may still have to be read.

        `places`: of the turn and of what can be in its mailbox, which waits with it.
        """
        self.remove(places)
        try:
            yield
        finally:
            self.add(places)

    @asynccontextmanager
    async def reserved(self, most: int) -> AsyncGenerator[int, None]:
        """Waits for room, and keeps up to `most` places for what is about to be read: how many, at least one.

        Without it, all the shards that read at once would fill the same room. At the end the places are free
        for `add`.
        """
        while not self._room.is_set():
            await self._room.wait()
        places = min(most, self._limit - self._count)
        self.add(places)
        try:
            yield places
        finally:
            self.remove(places)

    async def room(self) -> None:
        await self._room.wait()
