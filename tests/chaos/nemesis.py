"""Strikes with the faults of a deck, several at a time; what they are healed of is written down."""

import asyncio
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AsyncExitStack

from tests.chaos.arena import Arena
from tests.chaos.deck import KINDS, Area, Strike, area_of
from tests.chaos.faults import EFFECTS
from tests.chaos.history import Journalist, Struck


class Nemesis:
    """One fault at a time for each victim, Postgres and Valkey are one each; one worker is always spared.

    `failed`: what did not come back from a fault.
    """

    def __init__(self, arena: Arena, journalist: Journalist) -> None:
        self._arena = arena
        self._journalist = journalist
        self._victims: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.failed: list[str] = []
        self._workers = asyncio.Semaphore(max(1, len(arena.workers) - 1))

    async def strike(self, strikes: Iterable[Strike], seconds: float, at_least: int) -> None:
        """For so long, and with so many faults at least. Returns when all of them are healed."""
        start, before = time.monotonic(), 0.0
        async with asyncio.TaskGroup() as tasks:
            for number, strike in enumerate(strikes):
                await asyncio.sleep(strike.at - before)
                before = strike.at
                if number >= at_least and time.monotonic() - start >= seconds:
                    return
                name = self._victim(strike)
                stack = AsyncExitStack()
                # Here, so that a victim that is still busy holds up the next faults, too.
                await stack.enter_async_context(self._victims[name])
                if name in self._arena.workers:
                    await stack.enter_async_context(self._workers)
                tasks.create_task(self._one(strike, stack), name=f"{strike.kind} {strike.victim}")

    def _victim(self, strike: Strike) -> str:
        if KINDS[strike.kind].victims != "server":
            return strike.victim
        return "valkey" if area_of(strike.kind) is Area.REDIS else "postgres"

    async def _one(self, strike: Strike, stack: AsyncExitStack) -> None:
        async with stack:
            start = time.monotonic()
            try:
                await EFFECTS[strike.kind](self._arena, strike)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                self.failed.append(f"{strike.kind} of {strike.victim}: {error}")
            self._journalist.struck(Struck(strike.kind, self._victim(strike), start, time.monotonic()))
