"""Watches the runner's event loop from the heart's thread: code that blocks it is shown, and not for ever.

The heart beats on while the loop stands still, so no peer evicts the runner: here is who ends it. C code that
keeps the interpreter's lock stops the heart, too; that is a frozen process, and a peer's business.
"""

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass, replace
from enum import Enum

# Documented, and under no other name.
from sys import _current_frames as frames_of_threads  # pyright: ignore[reportPrivateUsage]

from psycopg import Error as PostgresError
from redis.exceptions import RedisError

from entityq.address import Address
from entityq.postgres.pinned_connection import LeaseLost
from entityq.runner.request import Request, running

log = logging.getLogger(__name__)

# EX_SOFTWARE of sysexits.h: whoever started the process starts another one.
EXIT_CODE = 70

# Seconds that a loop may stand still.
LIMIT = 30.0
# Seconds after which that is said; and again whenever they have doubled.
FIRST_REPORT = 1.0
# Seconds that one look can find at most. Looks are more frequent; a gap between them was a process that did not
# run, and whose loop may move as soon as it does.
LONGEST_LOOK = 1.0

RECORD_DEADLINE = 2.0
LAST_WORDS_DEADLINE = 5.0


class Step(Enum):
    """What is to be done about a loop that stands still."""

    WAIT = "wait"
    REPORT = "report"
    END = "end"


@dataclass(frozen=True, slots=True)
class Stall:
    """For how many seconds the loop has stood still, as far as looks have seen it."""

    seconds: float = 0.0
    report_at: float = FIRST_REPORT

    @property
    def reported(self) -> bool:
        return self.report_at > FIRST_REPORT

    def longer(self, elapsed: float) -> "Stall":
        """`elapsed`: since the last look."""
        return replace(self, seconds=self.seconds + min(elapsed, LONGEST_LOOK))

    def next_step(self, limit: float) -> tuple[Step, "Stall"]:
        """And the stall after it."""
        if self.seconds >= limit:
            return Step.END, self
        if self.seconds < self.report_at:
            return Step.WAIT, self
        report_at = self.report_at
        while report_at <= self.seconds:
            report_at *= 2
        return Step.REPORT, replace(self, report_at=report_at)


def leave(seconds: float) -> None:
    """Ends the process: at once, its logs flushed, or in so many seconds, whatever it does until then."""
    if seconds:
        threading.Timer(seconds, os._exit, [EXIT_CODE]).start()
        return
    logging.shutdown()
    os._exit(EXIT_CODE)


class LoopWatch:
    """Made in the loop that it watches.

    Args:
        record: called in the loop of the thread that looks with the request that is to blame, before the end.
        limit: seconds after which the process ends.
    """

    def __init__(
        self,
        record: Callable[[Request | None], Awaitable[None]],
        *,
        limit: float = LIMIT,
        leave: Callable[[float], None] = leave,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._record = record
        self._limit = limit
        self._leave = leave
        self._clock = clock
        self._stall = Stall()
        self._looked = clock()
        # When the loop last ran what was posted to it; None while that is still to come.
        self._moved: float | None = self._looked

    async def look(self) -> None:
        """To be called about once a second, or more often, by another thread's loop."""
        last, self._looked = self._looked, self._clock()
        if self._moved is not None:
            self._moves(self._moved - last)
        else:
            await self._stands_still(self._looked - last)

    def _moves(self, elapsed: float) -> None:
        if self._stall.reported:
            log.warning("loop.unblocked seconds=%.1f", self._stall.longer(elapsed).seconds)
        self._stall = Stall()
        self._moved = None
        try:
            self._loop.call_soon_threadsafe(self._move)
        except RuntimeError:  # closed: its runner has ended
            self._moved = self._looked

    async def _stands_still(self, elapsed: float) -> None:
        step, self._stall = self._stall.longer(elapsed).next_step(self._limit)
        if step is Step.REPORT:
            log.warning("loop.blocked %s\n%s", self._described(running_on(self._loop)), self._stack())
        elif step is Step.END:
            await self._end()

    def _move(self) -> None:
        self._moved = self._clock()

    def _described(self, culprit: Request | Address | None) -> str:
        seconds = f"seconds={self._stall.seconds:.1f}"
        if culprit is None:
            task = asyncio.current_task(self._loop)
            return f"{seconds} entity=- request=- message=- task={task and task.get_name()!r}"
        if isinstance(culprit, Address):
            return f"{seconds} entity={culprit} request=- message=- in on_deactivate"
        envelope = culprit.envelope
        return f"{seconds} entity={envelope.address} request={culprit.request_id} message={envelope.message}"

    def _stack(self) -> str:
        """Of the loop's thread, without what is above the task: that is the same for all of them."""
        task = asyncio.current_task(self._loop)
        outermost = None if task is None else getattr(task.get_coro(), "cr_frame", None)
        innermost = frame = frames_of_threads().get(self._thread)
        depth = 0
        while frame is not None:
            depth += 1
            frame = None if frame is outermost else frame.f_back
        return "".join(traceback.format_stack(innermost, depth)).rstrip()

    # ----- the end

    async def _end(self) -> None:
        # Whatever blocks the loop may hold what the next lines need, such as the lock of a log handler.
        self._leave(LAST_WORDS_DEADLINE)
        culprit = running_on(self._loop)
        log.critical(
            "loop.blocked_too_long %s: this process ends, and others take over its shards\n%s",
            self._described(culprit),
            self._stack(),
        )
        # An on_deactivate is not run again: no request is to be blamed for it.
        request = culprit if isinstance(culprit, Request) else None
        recording = asyncio.create_task(self._recorded(request), name="entityq attempt")
        await asyncio.wait([recording], timeout=RECORD_DEADLINE)
        if not recording.done():
            log.error("attempt.not_recorded request=%s: no answer", request and request.request_id)
        self._leave(0)

    async def _recorded(self, request: Request | None) -> None:
        try:
            await self._record(request)
        except (LeaseLost, PostgresError, RedisError, OSError, TimeoutError) as error:
            log.error("attempt.not_recorded request=%s: %r", request and request.request_id, error)


def running_on(loop: asyncio.AbstractEventLoop) -> Request | Address | None:
    """The request whose turn, or a task that its turn has started, is running in another thread's loop; or the
    entity whose instance ends there."""
    task = asyncio.current_task(loop)
    context = None if task is None else _context(task)
    return None if context is None else context.get(running)


def _context(task: "asyncio.Task[object]") -> Context | None:
    if sys.version_info >= (3, 12):
        return task.get_context()
    # Before, a task did not show it. Its own is the first; those of its callbacks follow.
    return next((each for each in gc.get_referents(task) if isinstance(each, Context)), None)
