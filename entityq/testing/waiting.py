"""Requests that wait for their time, which comes when a test says so."""

import heapq
import time

from entityq.postgres.outbox import NewRequest


class Waiting:
    """The clock goes on as the machine's does, and forward by what a test asks for; nothing fires by itself."""

    def __init__(self) -> None:
        self._advanced = 0.0
        self._queue: list[tuple[float, int, NewRequest]] = []

    def now(self) -> float:
        """Unix time, in seconds."""
        return time.time() + self._advanced

    def takes(self, request: NewRequest, seq: int) -> bool:
        """Whether it has to wait: `advance` returns it."""
        due = self.now() + (request.delay or 0) if request.due_at is None else request.due_at.timestamp()
        if not request.waits or due <= self.now():
            return False
        heapq.heappush(self._queue, (due, seq, request))
        return True

    def advance(self, seconds: float) -> list[tuple[NewRequest, int]]:
        """What is due then, with its seq, in the order of the times."""
        self._advanced += seconds
        due: list[tuple[NewRequest, int]] = []
        while self._queue and self._queue[0][0] <= self.now():
            _, seq, request = heapq.heappop(self._queue)
            due.append((request, seq))
        return due

    def take_out(self, request_id: int) -> NewRequest | None:
        """One that is not to be run at all."""
        for place, (_, _, request) in enumerate(self._queue):
            if request.request_id == request_id:
                del self._queue[place]
                heapq.heapify(self._queue)
                return request
        return None

    @property
    def request_ids(self) -> set[int]:
        return {request.request_id for _, _, request in self._queue}
