"""How many requests of one message may wait for their limits in a runner's memory, and what becomes of the others."""

import time
from collections import OrderedDict
from collections.abc import Callable

from entityq.address import Address

# Requests that wait in memory; the others wait in Postgres.
CAPACITY = 500
# Starts in a second of which tasks that wait in Postgres are brought back, at least, and the seconds after which.
LEAST_PACE = 50.0
SOONEST = 1.0
# Seconds over which the pace is measured.
_MEMORY = 5.0

Entity = tuple[int, Address]


class Room:
    """Of one message. Times are of one monotonic clock."""

    def __init__(self, capacity: int = CAPACITY, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity
        self._clock = clock
        self._inside = 0
        self._outside: OrderedDict[Entity, None] = OrderedDict()
        self._called: set[Entity] = set()
        self._pace = 0.0
        self._counted = clock()
        self._last_due = 0.0

    def enter(self, entity: Entity) -> bool:
        """Whether there is room; whoever is not called in waits behind those that are outside."""
        called = entity in self._called
        if self._inside >= self._capacity or (self._outside and not called):
            return False
        self._called.discard(entity)
        self._inside += 1
        return True

    def leave(self) -> None:
        self._inside -= 1

    def put_outside(self, entity: Entity) -> None:
        """An entity that is to be called in when there is room."""
        self._called.discard(entity)
        self._outside.setdefault(entity)

    def call_in(self) -> list[Entity]:
        """Those who have waited longest, when half of the room is free."""
        if self._inside > self._capacity // 2:
            return []
        if not self._outside and not self._inside:
            self._called.clear()  # what they had is gone
        called = [entity for entity, _ in zip(self._outside, range(self._capacity // 2), strict=False)]
        for entity in called:
            del self._outside[entity]
        self._called.update(called)
        return called

    def started(self) -> None:
        now = self._clock()
        fade = min(1.0, (now - self._counted) / _MEMORY)
        self._pace = self._pace * (1 - fade) + 1 / _MEMORY
        self._counted = now

    def put_off(self) -> float:
        """Seconds until a task is to come back: rather too early than too late."""
        now = self._clock()
        self._last_due = max(self._last_due, now + SOONEST) + 1 / max(LEAST_PACE, 2 * self._pace)
        return self._last_due - now
