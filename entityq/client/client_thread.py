"""The background thread of sync programs: an event loop of its own, with a client of its own."""

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar
from weakref import WeakMethod

from entityq.client.blocking import Work, refuse_running_loop, result_within
from entityq.ports import Sender

T = TypeVar("T")

# Seconds that the interpreter's exit waits for the connections to be closed.
EXIT_DEADLINE = 3.0


class ClosableSender(Sender, Protocol):
    async def close(self) -> None: ...


class _Life:
    """One thread in one process. A forked child has a copy whose thread does not exist."""

    def __init__(self, open_client: Callable[[], Awaitable[ClosableSender]]) -> None:
        self.loop = asyncio.new_event_loop()
        self._open = open_client
        self._client: ClosableSender | None = None
        self._opening = asyncio.Lock()
        self._thread = threading.Thread(target=self._run, name="entityq client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    async def do(self, work: Work[T]) -> T:
        async with self._opening:
            if self._client is None:
                self._client = await self._open()
        return await work(self._client)

    def end(self, seconds: float) -> None:
        """Closes the client and stops the thread; after that time the daemon thread is left alone."""
        asyncio.run_coroutine_threadsafe(self._close(), self.loop)
        self._thread.join(seconds)

    async def _close(self) -> None:
        try:
            if self._client is not None:
                await self._client.close()
        finally:
            self.loop.stop()


class ClientThread:
    """Starts at its first use, in each process anew, and ends with the interpreter or by `close`."""

    def __init__(self, open_client: Callable[[], Awaitable[ClosableSender]]) -> None:
        self._open = open_client
        self._life: _Life | None = None
        self._lock = threading.Lock()
        # A parent's loop must not be collected in the child: it shares its sockets and its epoll.
        self._inherited: list[_Life] = []
        child, end = WeakMethod(self._after_fork), WeakMethod(self.close)
        os.register_at_fork(after_in_child=lambda: (reset := child()) and reset())
        atexit.register(lambda: (close := end()) and close())

    def run(self, work: Work[Any], seconds: float) -> Any:
        """Raises EntityQError inside a running event loop, SendTimeout when the thread does not answer."""
        refuse_running_loop()
        life = self._living()
        return result_within(asyncio.run_coroutine_threadsafe(life.do(work), life.loop), seconds)

    def close(self) -> None:
        """The next use starts it again."""
        with self._lock:
            life, self._life = self._life, None
        if life is not None:
            life.end(EXIT_DEADLINE)

    def _living(self) -> _Life:
        with self._lock:
            if self._life is None:
                self._life = _Life(self._open)
            return self._life

    def _after_fork(self) -> None:
        # Another thread may have held the lock at the fork: nobody would ever release the child's copy.
        self._lock = threading.Lock()
        if self._life is not None:
            self._inherited.append(self._life)
            self._life = None
