"""A steady load: so many asks a second, each to the next of many entities, whatever becomes of them."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.probe import Probe
from entityq import EntityQError

TICK = 0.01


@dataclass(slots=True)
class Load:
    """What callers saw. Times in seconds."""

    answered: int = 0
    slowest: float = 0.0
    errors: list[str] = field(default_factory=list[str])
    under_way: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def ask(self, entity_id: str) -> None:
        began = time.monotonic()
        try:
            await Probe.at(entity_id).touch.options(timeout=60)()
        except EntityQError as error:
            self.errors.append(str(error))
        else:
            self.answered += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    async def run(self, rate: float, entities: int) -> None:
        began, sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(TICK)
                due = int((time.monotonic() - began) * rate)
                for number in range(sent, due):
                    task = tasks.create_task(self.ask(f"load-{number % entities}"), name=f"ask {number}")
                    self.under_way.add(task)
                    task.add_done_callback(self.under_way.discard)
                sent = max(sent, due)

    def forget(self) -> None:
        """What was seen until now."""
        self.answered, self.slowest = 0, 0.0
        self.errors.clear()

    async def settled(self) -> None:
        """Until all that is under way now is answered."""
        waiting = set(self.under_way)
        if waiting:
            await asyncio.wait(waiting)


@asynccontextmanager
async def steady(rate: float, entities: int = 1_000) -> AsyncGenerator[Load]:
    load = Load()
    running = asyncio.create_task(load.run(rate, entities), name="load")
    try:
        yield load
    finally:
        await load.settled()
        running.cancel()
        await asyncio.wait([running])
