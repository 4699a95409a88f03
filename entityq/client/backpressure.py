"""Whether a shard group has room for more unanswered requests."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from entityq.postgres.outbox import count_pending, estimate_pending
from entityq.postgres.session import Session

# Seconds. How late a full group may be noticed, and one with room again.
INTERVAL = 1.0


@dataclass(slots=True)
class Room:
    """What may be inserted until the next look; `counted`: an exact number, not an estimate."""

    left: int
    counted: bool
    until: float


def is_current(room: Room | None, now: float) -> bool:
    """Whether no look is needed: a used up estimate calls for a count, a used up count for patience."""
    return room is not None and now < room.until and (room.left > 0 or room.counted)


class Backpressure:
    """Looks at most once a second, and counts only where the cheap estimate comes near the limit."""

    def __init__(
        self,
        session: Session,
        namespace: str,
        max_pending: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._namespace = namespace
        self._max_pending = max_pending
        self._clock = clock
        self._rooms: dict[str, Room] = {}

    async def look(self, groups: Iterable[str]) -> None:
        """Before `take`. Raises what Session.run does."""
        for group in groups:
            room, now = self._rooms.get(group), self._clock()
            if not is_current(room, now):
                self._rooms[group] = await self._measure(group, room, now)

    def take(self, group: str) -> bool:
        """Whether one more request of the group may be inserted."""
        room = self._rooms[group]
        if room.left <= 0:
            return False
        room.left -= 1
        return True

    async def _measure(self, group: str, last: Room | None, now: float) -> Room:
        until = now + INTERVAL
        used_up = last is not None and last.left <= 0
        if not used_up:
            # Half of the limit is left as a margin for what the estimate has not seen yet.
            left = self._max_pending // 2 - await self._session.run(estimate_pending)
            if left > 0:
                return Room(left, counted=False, until=until)
        pending = await self._session.run(
            lambda connection: count_pending(connection, self._namespace, group, self._max_pending)
        )
        return Room(self._max_pending - pending, counted=True, until=until)
