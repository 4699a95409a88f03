"""The heart of one incarnation: the thread in which its pulse runs.

A thread, with a loop and a connection of its own, because a handler can block the runner's loop, and because
the lease session has commits to carry.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

from entityq.postgres.facts import Facts
from entityq.postgres.heartbeat import Executes
from entityq.postgres.lease_session import Backend
from entityq.postgres.pinned_connection import LeaseLost, Parameters, PinnedConnection, Rows
from entityq.runner.clock import now
from entityq.runner.pulse import STATEMENT_DEADLINE, Line, Listener, Pulse
from entityq.runner.tasks import end

log = logging.getLogger(__name__)

T = TypeVar("T")

STOP_DEADLINE = 1.0


async def nothing_more() -> None:
    """The default of what a heart does besides."""


class Heart:
    """Made by `open_heart`, connected. `begin`: it beats once; `listen`: from then on."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._pinned: PinnedConnection | None = None
        self._pulse: Pulse | None = None
        self._runner_loop = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._stopped = Future[None]()
        self._working: list[asyncio.Task[Any]] = []
        # A daemon: where the main thread ends without having stopped it, the process must not stay and beat.
        threading.Thread(target=self._thread, name="entityq heart", daemon=True).start()

    # ----- in the runner's loop

    async def connect(self) -> None:
        """Raises PersistenceError."""
        await asyncio.wrap_future(self._start(self._connect()))

    async def begin(self, incarnation: int, backend: Backend) -> None:
        """The first beat of an incarnation, to be waited for before its first lock of a shard.

        `backend`: the lease session's. Raises LeaseLost, psycopg.Error.
        """
        await asyncio.wrap_future(self._start(self._begin(incarnation, backend)))

    def listen(
        self,
        listener: Listener,
        lease_session: Executes,
        each_cycle: Callable[[], Awaitable[None]] = nothing_more,
    ) -> None:
        """Beats from now on; calls `listener` in this loop, and `each_cycle` in the heart's own, at each beat.

        `lease_session`: beaten on, in this loop, while the heart has no connection.
        """
        relay = _Relay(listener, self._runner_loop)
        borrowed = _Borrowed(lease_session, self._runner_loop, self._line.lease_time * STATEMENT_DEADLINE)
        beating = self._start(self._begun.run(relay, each_cycle, borrowed))
        beating.add_done_callback(relay.ended)

    def joined(self, incarnation: int) -> None:
        """The next beat, at once where nothing keeps it, looks for this runner."""
        if self._pulse is not None:
            with suppress(RuntimeError):  # stopped
                self._loop.call_soon_threadsafe(self._pulse.joined, incarnation)

    def fresh(self) -> bool:
        """Whether nobody can have evicted this runner: its last beat began less than a lease time ago."""
        return self._pulse is not None and now() < self._pulse.fresh_until

    async def stop(self) -> None:
        if self._stopped.done():
            return
        stopped = asyncio.wrap_future(self._stopped)
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        _, waiting = await asyncio.wait([stopped], timeout=STOP_DEADLINE)
        if waiting:
            log.error("heart.not_stopped within %g s: its thread is left alone", STOP_DEADLINE)

    # ----- in its own loop

    async def execute(self, query: bytes, parameters: Parameters | None = None) -> Rows:
        """One statement of `each_cycle`. Raises LeaseLost, psycopg.Error."""
        return await self._begun.pinned.execute(query, parameters)

    @property
    def _begun(self) -> Pulse:
        if self._pulse is None:
            raise LeaseLost("the heart has not begun")
        return self._pulse

    async def _connect(self) -> None:
        self._pinned = await self._line.open()

    async def _begin(self, incarnation: int, backend: Backend) -> None:
        if self._pinned is None:
            raise LeaseLost("the heart is not connected")
        pulse = Pulse(self._line, self._pinned, incarnation, backend)
        await pulse.begin()
        self._pulse = pulse

    async def _stop(self) -> None:
        for task in self._working:
            await end(task)
        pinned = self._pulse.pinned if self._pulse is not None else self._pinned
        if pinned is not None:
            pinned.end("the heart has stopped")
        # A statement that was cut off ends by itself.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            await asyncio.wait(rest, timeout=STOP_DEADLINE / 2)
        self._loop.stop()

    def _thread(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
            self._stopped.set_result(None)

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._registered(work), self._loop)

    async def _registered(self, work: Coroutine[Any, Any, T]) -> T:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._working.append(task)
        return await work


class _Relay:
    """Calls a listener in the loop of its runner, which may have ended."""

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self._listener = listener
        self._loop = loop

    def membership_changed(self) -> None:
        self._soon(self._listener.membership_changed)

    def runner_ended(self, incarnation: int) -> None:
        self._soon(self._listener.runner_ended, incarnation)

    def not_a_member(self, reason: str) -> None:
        self._soon(self._listener.not_a_member, reason)

    def ended(self, beating: Future[None]) -> None:
        """It never should: whoever does not beat must not go on."""
        error = None if beating.cancelled() else beating.exception()
        if error is not None:
            log.error("heart.stopped", exc_info=error)
            self.not_a_member(f"its heart stopped: {error!r}")

    def _soon(self, call: Callable[..., None], *values: object) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *values)


class _Borrowed:
    """The lease session, for statements of the heart's thread: they run in the loop of its runner.

    Its deadline only ends the waiting. To cancel a statement would end the session.
    """

    def __init__(self, session: Executes, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        self._session = session
        self._loop = loop
        self._deadline = deadline
        self._last: Future[Rows] | None = None

    async def execute(self, query: bytes, parameters: Parameters | None = None) -> Rows:
        if self._last is not None and not self._last.done():
            raise LeaseLost("the lease session has not answered the last statement yet")
        statement = self._session.execute(query, parameters)
        try:
            self._last = running = asyncio.run_coroutine_threadsafe(statement, self._loop)
        except RuntimeError:
            statement.close()
            raise LeaseLost("the runner's loop has ended") from None
        mine, answered = asyncio.get_running_loop(), asyncio.Event()

        def answer(_: Future[Rows]) -> None:
            with suppress(RuntimeError):  # the heart has stopped meanwhile
                mine.call_soon_threadsafe(answered.set)

        running.add_done_callback(answer)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline):
                await answered.wait()
        if not running.done() or running.cancelled():
            raise LeaseLost("the lease session did not answer")
        return running.result()


@asynccontextmanager
async def open_heart(url: str, *, schema: str, facts: Facts, lease_time: float) -> AsyncGenerator[Heart]:
    """Connected, and stopped at the end. Raises PersistenceError: a runner that could not be heard would be
    evicted, so it must not join."""
    heart = Heart(Line(url, schema=schema, facts=facts, lease_time=lease_time))
    try:
        await heart.connect()
        yield heart
    finally:
        await heart.stop()
