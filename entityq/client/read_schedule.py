"""When waiters that hear nothing read the outbox: pure, and cheap for thousands of them."""

from collections import deque
from collections.abc import Container, Iterable

# Seconds before the next read of a waiter that has read so often already.
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.0)


class ReadSchedule:
    """All requests that have read equally often have the same pause: one queue for each number of reads."""

    def __init__(self) -> None:
        self._queues: list[deque[tuple[float, int]]] = [deque() for _ in PAUSES]
        self._at_once: set[int] = set()

    def add(self, request_id: int, now: float) -> None:
        """The first read is after the first pause."""
        self._queues[0].append((now + PAUSES[0], request_id))

    def hasten(self, request_ids: Iterable[int]) -> None:
        """An additional read, now."""
        self._at_once.update(request_ids)

    def due(self, now: float, waiting: Container[int]) -> set[int]:
        """What is to be read by `now`; its next read is scheduled. Who waits no more is dropped."""
        found = {request_id for request_id in self._at_once if request_id in waiting}
        self._at_once.clear()
        # From the last queue to the first: nothing is met twice.
        for level in range(len(PAUSES) - 1, -1, -1):
            later = min(level + 1, len(PAUSES) - 1)
            for request_id in self._ended(self._queues[level], now):
                if request_id in waiting:
                    found.add(request_id)
                    self._queues[later].append((now + PAUSES[later], request_id))
        return found

    def next_due(self) -> float | None:
        """The time of the earliest read; None when there is nothing to read."""
        if self._at_once:
            return 0.0
        return min((queue[0][0] for queue in self._queues if queue), default=None)

    @staticmethod
    def _ended(queue: deque[tuple[float, int]], now: float) -> list[int]:
        ended: list[int] = []
        while queue and queue[0][0] <= now:
            ended.append(queue.popleft()[1])
        return ended
