"""The clients of one app: one for each event loop that sends, and one, with a thread, for sync code."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from entityq.address import Address
from entityq.call import Call
from entityq.client.blocking import BlockingClient
from entityq.client.client import Client
from entityq.client.client_thread import ClientThread
from entityq.config import Settings
from entityq.receipt import Receipt
from entityq.status import EntityStatus


class Clients:
    """A Sender for every loop and thread: each client is opened at its first use."""

    def __init__(
        self, open_client: Callable[[], Awaitable[Client]], settings: Callable[[], Settings]
    ) -> None:
        self._open = open_client
        self._settings = settings
        self._thread = ClientThread(open_client)
        self._by_loop = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Client]]()

    async def send(self, call: Call) -> Receipt[Any]:
        return await (await self._current()).send(call)

    async def ask(self, call: Call) -> Any:
        return await (await self._current()).ask(call)

    async def status(self, address: Address) -> EntityStatus:
        return await (await self._current()).status(address)

    def blocking(self) -> BlockingClient:
        settings = self._settings()
        return BlockingClient(
            self._thread.run, send_timeout=settings.send_timeout, ask_timeout=settings.ask_timeout
        )

    async def close(self) -> None:
        """The running loop's client; the next use opens another one."""
        opening = self._by_loop.pop(asyncio.get_running_loop(), None)
        if opening is not None:
            await asyncio.wait([opening])
            if _usable(opening):
                await opening.result().close()

    def close_blocking(self) -> None:
        """The one for sync code, with its thread."""
        self._thread.close()

    async def _current(self) -> Client:
        loop = asyncio.get_running_loop()
        opening = self._by_loop.get(loop)
        if opening is None or (opening.done() and not _usable(opening)):
            self._drop_closed_loops()
            opening = self._by_loop[loop] = loop.create_task(self._opened(), name="entityq client opening")
        if opening.done():
            return opening.result()
        # A caller who gives up does not take the client away from the others.
        return await asyncio.shield(opening)

    async def _opened(self) -> Client:
        return await self._open()

    def _drop_closed_loops(self) -> None:
        # A client knows its loop: without this, neither would ever be collected.
        for loop in [loop for loop in self._by_loop if loop.is_closed()]:
            del self._by_loop[loop]


def _usable(opening: asyncio.Task[Client]) -> bool:
    return not opening.cancelled() and opening.exception() is None
