"""The app of these tests: entities whose durable state tells what was applied, in order."""

import asyncio
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from entityq import Entity, EntityQ, message

app = EntityQ("promises")

# (entity id, key): how often a handler was run in this process, applied or not.
RUNS: Counter[tuple[str, str]] = Counter()


@dataclass(slots=True)
class Gate:
    """Holds the handlers of one entity. `entered` counts those that came."""

    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    opened: threading.Event = field(default_factory=threading.Event)

    async def wait_for_handler(self, seconds: float = 10.0) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=seconds), "no handler came"

    def hold(self) -> None:
        self.entered.release()
        assert self.opened.wait(60), "nobody opened the gate"


GATES: defaultdict[str, Gate] = defaultdict(Gate)


@app.entity
class Journal(Entity):
    entries: list[str] = []

    @message(primary_key="key")
    async def write(self, key: str, amount: int = 1, note: str = "") -> list[str]:
        """The reply tells the whole state, so that any other order or repeat of the turns shows in it."""
        RUNS[self.id, key] += 1
        self.entries.append(f"{key}={amount}{note}")
        return [*self.entries[-3:], str(len(self.entries))]

    @message
    async def append(self, text: str) -> int:
        self.entries.append(text)
        return len(self.entries)

    @message
    def held(self, text: str) -> int:
        """In a thread, until its gate is opened."""
        RUNS[self.id, text] += 1
        GATES[self.id].hold()
        self.entries.append(text)
        return len(self.entries)

    @message
    async def stubborn(self, text: str) -> int:
        """On the loop, and not to be cancelled; each run has a gate of its own: "id 1", "id 2", ..."""
        RUNS[self.id, text] += 1
        gate = GATES[f"{self.id} {RUNS[self.id, text]}"]
        gate.entered.release()
        waiting = asyncio.ensure_future(asyncio.to_thread(gate.opened.wait, 60))
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                continue
        self.entries.append(text)
        return len(self.entries)

    @message
    async def pass_on(self, to: str, texts: list[str]) -> None:
        for text in texts:
            await Journal.at(to).append.send(text)

    @message
    def pass_on_late(self, to: str, text: str) -> None:
        Journal.at(to).append.delay(text)
        GATES[self.id].hold()

    @message(persisted=False)
    async def read(self) -> list[str]:
        return self.entries


@app.entity(mailbox_capacity=5)
class Narrow(Entity):
    """A small mailbox."""

    entries: list[str] = []

    @message
    async def append(self, text: str) -> int:
        self.entries.append(text)
        return len(self.entries)

    @message
    def held(self, text: str) -> int:
        GATES[self.id].hold()
        self.entries.append(text)
        return len(self.entries)

    @message(persisted=False)
    async def peek(self) -> int:
        return len(self.entries)

    @message(persisted=False)
    def held_peek(self) -> int:
        GATES[self.id].hold()
        return len(self.entries)

    @message
    async def grow(self, size: int) -> None:
        """A state of that many bytes, and some."""
        self.entries.append("x" * size)

    @message
    async def long_reply(self, size: int) -> str:
        return "x" * size
