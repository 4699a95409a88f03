"""One place of a worker: keeps a runner in it."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from entityq_cli.runner_process import RunnerProcess

_log = logging.getLogger(__name__)

# Seconds.
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 10.0
_STABLE = 30.0


def restart_delay(crashes: int) -> float:
    """Seconds before a new runner is started after that many crashes in a row: none after the first."""
    return 0.0 if crashes <= 1 else min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(crashes - 2, 10))


class Slot:
    """`start` starts a runner; `refused` is called with one that may not start, and returns to have it
    tried again; once `stopping` is set, no runner is started any more."""

    def __init__(
        self,
        index: int,
        start: Callable[[int], Awaitable[RunnerProcess]],
        refused: Callable[[RunnerProcess], Awaitable[None]],
        stopping: asyncio.Event,
    ) -> None:
        self._index = index
        self._start = start
        self._refused = refused
        self._stopping = stopping
        self._runner: RunnerProcess | None = None
        # Held while a runner is started, so that the slot never has two of its own.
        self._starting = asyncio.Lock()

    async def run(self) -> None:
        """Returns when stopping is set and the slot's runner has ended."""
        crashes = 0
        while not self._stopping.is_set():
            runner = await self._current()
            await runner.ended.wait()
            if runner is not self._runner or self._stopping.is_set():
                continue
            crashes = crashes + 1 if runner.lived() < _STABLE else 1
            if runner.refused is not None:
                await self._refused(runner)
                continue
            delay = restart_delay(crashes)
            _log.error(
                "worker.runner_ended runner=%d pid=%d exit=%s: starting another one in %.1f s",
                self._index,
                runner.pid,
                runner.exit_code,
                delay,
            )
            await pause(self._stopping, delay)

    async def replace(self) -> str | None:
        """Starts another runner and, once it serves, ends the old one.

        Or returns why the new one ended before it served: the old one goes on.
        """
        async with self._starting:
            old = self._runner
            if old is None or old.ended.is_set():
                return None  # `run` is about to start one
            new = await self._start(self._index)
            await new.settled.wait()
            if not new.serving:
                return new.refused.sentence if new.refused else f"It ended with {new.exit_code}."
            self._runner = new
        old.signal(signal.SIGTERM)
        await old.ended.wait()
        return None

    async def _current(self) -> RunnerProcess:
        async with self._starting:
            if self._runner is None or self._runner.ended.is_set():
                self._runner = await self._start(self._index)
            return self._runner


async def pause(until: asyncio.Event, seconds: float) -> None:
    """Waits for the event, at most that long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await until.wait()
