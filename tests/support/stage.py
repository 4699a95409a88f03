"""Where the handlers of test entities tell what they do, and wait until the test lets them go on."""

import asyncio
from collections.abc import Callable
from typing import ClassVar

from entityq import Entity

PATIENCE = 10.0


class Stage:
    """A journal of lines and named gates. Gates are open unless a test has closed them."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._closed: dict[str, asyncio.Event] = {}
        self._told = asyncio.Event()

    def tell(self, line: str) -> None:
        """On the loop."""
        self.journal.append(line)
        told, self._told = self._told, asyncio.Event()
        told.set()

    def close(self, *gates: str) -> None:
        for gate in gates:
            self._closed.setdefault(gate, asyncio.Event())

    def open(self, *gates: str) -> None:
        for gate in gates:
            self._closed.pop(gate).set()

    def open_all(self) -> None:
        self.open(*self._closed)

    async def enter(self, line: str, gate: str = "") -> None:
        """Tell, then wait until the gate is open."""
        self.tell(line)
        closed = self._closed.get(gate)
        if closed is not None:
            await closed.wait()

    def enter_from_thread(self, line: str, gate: str = "") -> None:
        asyncio.run_coroutine_threadsafe(self.enter(line, gate), self._loop).result(PATIENCE * 2)

    def lines(self, start: str) -> list[str]:
        """Those that begin with `start`, without it."""
        return [line.removeprefix(start) for line in self.journal if line.startswith(start)]

    async def until(self, ready: Callable[[], bool], what: str) -> None:
        """Looks again whenever something was told."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not ready():
                    await self._told.wait()
        except TimeoutError:
            raise AssertionError(f"{what} did not happen; the journal is {self.journal}") from None

    async def saw(self, *lines: str) -> None:
        await self.until(lambda: set(lines) <= set(self.journal), " and ".join(lines))


class Actor(Entity):
    """A test entity: give it to `LiveCluster.actor`, which makes an entity type of it for one test."""

    _stage: ClassVar[Stage]
