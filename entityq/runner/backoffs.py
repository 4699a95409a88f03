"""Entities whose oldest ordered request waits for its next attempt, by when that is due."""

import heapq
import math
from itertools import count

from entityq.address import Address

# Times in the queue that do not count any more.
MOST_LEFT_OVER = 1_000

# A shard's id and an address in it.
Entity = tuple[int, Address]


class Backoffs:
    """Times are those of one monotonic clock; infinity: until somebody ends it."""

    def __init__(self) -> None:
        self._until: dict[Entity, float] = {}
        # With times that do not count any more: they go when they are due.
        self._queue: list[tuple[float, int, Entity]] = []
        self._numbers = count()

    def __contains__(self, entity: Entity) -> bool:
        return entity in self._until

    def __len__(self) -> int:
        return len(self._until)

    @property
    def left_over(self) -> int:
        """Of waits that have ended before their time."""
        return len(self._queue) - len(self._until)

    def begin(self, entity: Entity, until: float) -> None:
        self._until[entity] = until
        if math.isinf(until):
            return
        heapq.heappush(self._queue, (until, next(self._numbers), entity))
        if len(self._queue) > 2 * len(self._until) + MOST_LEFT_OVER:
            # Waits for signals end long before their time.
            self._queue = [entry for entry in self._queue if self._until.get(entry[2]) == entry[0]]
            heapq.heapify(self._queue)

    def end(self, entity: Entity) -> None:
        """Before its time."""
        self._until.pop(entity, None)

    def pop_due(self, now: float) -> list[Entity]:
        """Those whose time has come, in the order of their times."""
        due: list[Entity] = []
        while self._queue and self._queue[0][0] <= now:
            until, _, entity = heapq.heappop(self._queue)
            if self._until.get(entity) == until:
                del self._until[entity]
                due.append(entity)
        return due

    @property
    def next_due(self) -> float | None:
        """Not after the first that is due; None: at no time."""
        return self._queue[0][0] if self._queue else None
