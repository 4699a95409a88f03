"""What the proxies of Postgres and Redis have in common: a Unix socket in front of another one."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from tests.crash_points.gate import Gate
from tests.crash_points.point import Phase

BLOCK = 65_536

Forward = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Cut(Exception):
    """The connection ends here."""


class Link(ABC):
    """One connection through a proxy."""

    def __init__(self, gate: Gate, server: str) -> None:
        self._gate = gate
        self._server = server

    async def reach(self, step: str, phase: Phase) -> None:
        """Raises Cut when a fault of the point ends the connection."""
        if not await self._gate.reach(self._server, step, phase):
            raise Cut

    @abstractmethod
    async def requests(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """The process has sent `data`."""

    @abstractmethod
    async def answers(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """The server has sent `data`."""


class Proxy:
    """One listening socket; its connections end with it."""

    def __init__(self, target: Path, new_link: Callable[[], Link]) -> None:
        self._target = target
        self._new_link = new_link
        self._listening: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._closed = False

    async def listen(self, path: Path) -> None:
        self._listening = await asyncio.start_unix_server(self._accepted, str(path))

    async def close(self) -> None:
        assert self._listening is not None
        self._listening.close()
        self._closed = True
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:  # it was accepted a moment before
            writer.transport.abort()
            return
        task = asyncio.create_task(self._connect(reader, writer), name="proxied connection")
        self._connections.add(task)
        # Not in the task, which can be cancelled before its first step.
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            return
        link = self._new_link()
        ways = [
            asyncio.create_task(_pass(reader, to_server, link.requests)),
            asyncio.create_task(_pass(from_server, writer, link.answers)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # What the server is still doing is ended by its finding nobody there, as when a process dies.
            to_server.transport.abort()
            for way in ways:
                way.cancel()
            for result in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, forward: Forward) -> None:
    with suppress(OSError, Cut):
        while data := await reader.read(BLOCK):
            await forward(data, writer)
            await writer.drain()
