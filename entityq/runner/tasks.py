"""The tasks of one incarnation: owned, named, and ended with it."""

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import copy_context
from types import TracebackType
from typing import Any, Protocol, Self

log = logging.getLogger(__name__)

# Seconds between two tries to end a task, and between those to end all: they may have things to close.
CANCEL_AGAIN = 0.05
CANCEL_ALL_AGAIN = 0.5


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels a task and waits for its end.

    More than once where it must: on Python 3.11 a cancellation that meets the end of an `asyncio.wait_for`, as
    in psycopg's pool, is lost, and the task goes on.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN)


class StartsTasks(Protocol):
    """Implemented by a runner's incarnation and by entityq.testing."""

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]: ...


class Tasks:
    """A TaskGroup whose tasks do not inherit the variables of whoever starts them.

    Turns run beside it: a handler that swallows its cancellation must not keep the incarnation from ending.
    """

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._group = asyncio.TaskGroup()
        # A turn that ends starts the next one, which must not see its context.
        self._context = copy_context()
        self._turns: set[asyncio.Task[None]] = set()
        self._others: set[asyncio.Task[None]] = set()

    def start_turn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """`work` must not raise."""
        task = asyncio.get_running_loop().create_task(
            work, name=f"entityq {self._incarnation} {name}", context=self._context.copy()
        )
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)
        return task

    async def end_turns(self, seconds: float) -> None:
        """Cancels them, and leaves alone, with a log line, those that do not end within that time."""
        for task in self._turns:
            task.cancel()
        if self._turns:
            await asyncio.wait(set(self._turns), timeout=seconds)
        for task in self._turns:
            log.error("turn.abandoned %s: it goes on, and cannot commit", task.get_name())

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(
            work, name=f"entityq {self._incarnation} {name}", context=self._context.copy()
        )
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        return task

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self._group.__aexit__(kind, error, traceback)
            return
        again = asyncio.create_task(self._cancel_again(), name=f"entityq {self._incarnation} end")
        try:
            await self._group.__aexit__(kind, error, traceback)
        finally:
            again.cancel()

    async def _cancel_again(self) -> None:
        """The group cancels its tasks once, which is not enough (see `end`)."""
        while True:
            await asyncio.sleep(CANCEL_ALL_AGAIN)
            for task in self._others:
                task.cancel()
