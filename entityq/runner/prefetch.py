"""How many requests a runner has read and not yet answered: bounded, so that a backlog stays in Postgres."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Room:
    """Reading stops at `limit` used places and goes on at half of it: in pages, not in single rows.

    Places that are reserved close the room only while they leave nothing: they never have to be waited down to
    half of it.
    """

    limit: int
    used: int = 0
    reserved: int = 0
    full: bool = False

    @property
    def open(self) -> bool:
        return not self.full and self.used + self.reserved < self.limit

    def use(self, places: int) -> None:
        """Fewer than 0: they are free again."""
        self.used += places
        if self.used >= self.limit:
            self.full = True
        elif self.used <= self.limit // 2:
            self.full = False

    def reserve(self, most: int) -> int:
        """Of an open room, how many places of `most`: at least one.

        Never more than half of all: whoever else reads goes on while the outbox answers late.
        """
        places = min(most, max(1, self.limit // 2), self.limit - self.used - self.reserved)
        self.reserved += places
        return places

    def release(self, places: int) -> None:
        self.reserved -= places


class Prefetch:
    """A room, and the wait for it."""

    def __init__(self, limit: int) -> None:
        self._room = Room(limit)
        self._open = asyncio.Event()
        self._open.set()

    def __len__(self) -> int:
        return self._room.used + self._room.reserved

    def add(self, count: int = 1) -> None:
        self._room.use(count)
        self._tell()

    def remove(self, count: int = 1) -> None:
        self._room.use(-count)
        self._tell()

    def _tell(self) -> None:
        if self._room.open:
            self._open.set()
        else:
            self._open.clear()

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
        while not self._open.is_set():
            await self._open.wait()
        places = self._room.reserve(most)
        self._tell()
        try:
            yield places
        finally:
            self._room.release(places)
            self._tell()

    async def room(self) -> None:
        await self._open.wait()
