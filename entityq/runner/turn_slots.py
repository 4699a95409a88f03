"""How many turns a runner works on at once, over all of its entities."""

from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class Waits(Protocol):
    """An activation that wants a slot."""

    def pump(self) -> None: ...


class TurnSlots:
    """First come, first served. (asyncio.Semaphore looks at all of its waiters whenever one is woken.)"""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[Waits] = deque()
        self._closed = False

    def take(self, activation: Waits) -> bool:
        """Whether there is a slot; if not, the activation is pumped when one is free."""
        if self._closed:
            return False
        if self._free > 0:
            self._free -= 1
            return True
        self._waiting.append(activation)
        return False

    def close(self) -> None:
        """No turn starts any more."""
        self._closed = True

    @contextmanager
    def lent(self) -> Generator[None]:
        """For the time that a turn only waits, its slot is somebody else's; it gets one back at once."""
        self.give_back()
        try:
            yield
        finally:
            self._free -= 1

    def give_back(self) -> None:
        self._free += 1
        # One that does not want it any more (its mailbox was emptied) must not keep the next from starting.
        while self._free > 0 and self._waiting:
            self._waiting.popleft().pump()
