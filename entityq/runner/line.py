"""Requests that wait for their limits, first come, first served; and how many of them may start."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from entityq.runner.gates import Gate
from entityq.runner.request import Request

# Requests that pass the gates together.
AT_ONCE = 100
# Seconds for which permits are kept while the rate does not let their turns start.
HOLD = 0.05
# Seconds of a pause.
SHORTEST = 0.0005
LAST = 0.001


class Waits(Protocol):
    """An activation with a request that waits."""

    def pump(self) -> None: ...


A = TypeVar("A", bound=Waits)


@dataclass(slots=True, eq=False)
class Place(Generic[A]):
    """In a line; `lent` is closed when it is left."""

    activation: A
    lent: ExitStack = field(default_factory=ExitStack)


class Line(Generic[A]):
    """`gates` in their order: first those of turns at once, so that no start is counted that does not come.

    `granted` is called with each request that may start, before its activation is pumped.
    """

    def __init__(self, gates: Sequence[Gate], granted: Callable[[Request], None]) -> None:
        self._gates = gates
        self._granted = granted
        self._held = [0] * len(gates)
        self._woken = asyncio.Event()
        self._empty = asyncio.Event()
        self.waiting: OrderedDict[Request, Place[A]] = OrderedDict()
        # Its `run` has been started, and has not ended.
        self.active = False

    def at_once(self) -> bool:
        """Whether one may start now, without waiting."""
        if self.waiting:
            return False
        for place, gate in enumerate(self._gates):
            if not gate.at_once():
                for passed in self._gates[:place]:
                    passed.give_back(1, started=False)
                return False
        return True

    def ended(self) -> None:
        """A turn that was granted."""
        for gate in self._gates:
            gate.give_back(1, started=True)

    def leave(self, request: Request) -> bool:
        """Whether it has waited here."""
        place = self.waiting.pop(request, None)
        if place is None:
            return False
        place.lent.close()
        if not self.waiting:
            self._empty.set()
        return True

    async def run(self) -> None:
        """Until nobody waits. LeaseLost passes."""
        for gate in self._gates:
            gate.listeners.add(self._woken.set)
        try:
            while self.waiting:
                self._woken.clear()
                self._empty.clear()
                ready, pause, event = await self._pass(min(len(self.waiting), AT_ONCE))
                self._grant(ready)
                if pause and self.waiting:
                    if pause > HOLD:
                        # What a rate has let through, it does not take back.
                        self._give_back(gate.tells for gate in self._gates)
                    await _until(event, pause)
        finally:
            self.active = False
            for gate in self._gates:
                gate.listeners.remove(self._woken.set)
            self._give_back(True for _ in self._gates)
            for gate in self._gates:
                if not gate.listeners:
                    gate.nobody_waits()

    async def _pass(self, wanted: int) -> tuple[int, float, asyncio.Event]:
        """How many may start, the seconds until the next look (0: at once), and what makes it sooner."""
        pause, event = 0.0, self._woken
        for place, gate in enumerate(self._gates):
            missing = wanted - self._held[place]
            if missing > 0:
                taken, wait = await gate.take(missing)
                self._held[place] += taken
                if taken < missing:
                    # Who got something lets the other lines be first.
                    again = wait + (LAST if taken and len(gate.listeners) > 1 else 0.0)
                    pause = max(pause, again, SHORTEST)
                    if not gate.tells:
                        event = self._empty
            wanted = min(wanted, self._held[place])
            if not wanted:
                break
        return wanted, pause, event

    def _grant(self, ready: int) -> None:
        for _ in range(min(ready, len(self.waiting))):
            request, place = self.waiting.popitem(last=False)
            self._held = [held - 1 for held in self._held]
            place.lent.close()
            self._granted(request)
            place.activation.pump()

    def _give_back(self, which: Iterable[bool]) -> None:
        for place, (gate, given) in enumerate(zip(self._gates, which, strict=True)):
            if given and self._held[place]:
                gate.give_back(self._held[place], started=False)
                self._held[place] = 0


async def _until(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
