"""Permits of one limit of turns at once in the cluster: advisory locks of the session that holds the leases.

Who holds them therefore dies, and is evicted, as an owner of shards is: whatever becomes of a runner, its permits
are free when its shards are. Nothing depends on Redis, which only says sooner that there is a free one.
"""

import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from psycopg import Error as PostgresError

from entityq.outage import Outage
from entityq.postgres.pinned_connection import LeaseLost
from entityq.postgres.queries import load

_QUERIES = load("permits.sql")
_TRY, _GIVE_BACK = _QUERIES["try_permits"], _QUERIES["give_permits_back"]

log = logging.getLogger(__name__)

# Seconds: between two tries of who waits; for how long a permit goes from turn to turn of this runner although
# another one waits; for how long this runner then leaves the free ones to the others, who have been told or look
# again in POLL; for how long it believes that others wait.
POLL = 0.1
QUANTUM = 0.1
YIELD = 0.03
BELIEVED = 5.0


class Session(Protocol):
    async def execute(self, query: bytes, parameters: Mapping[str, Any] | None = None) -> Any: ...


class Others(Protocol):
    """The runners that want the same permits."""

    def all_hear(self) -> bool:
        """Whether what is told reaches them, and what they tell this one."""
        ...

    def exist(self) -> bool: ...

    def tell(self, word: str) -> None: ...


@dataclass(slots=True)
class Contention:
    """Whether others wait for permits, as a decision; times are of one monotonic clock."""

    heard: float = field(default=float("-inf"))

    def others_wait(self, now: float, *, all_hear: bool, exist: bool) -> bool:
        """Where they cannot say it, they may."""
        return exist and (not all_hear or now - self.heard < BELIEVED)

    def keeps(self, now: float, since: float, *, contended: bool) -> bool:
        """Whether a permit that it has had `since` may go on to the next turn of this runner."""
        return not contended or now - since < QUANTUM


class Permits:
    """Of one incarnation.

    Args:
        lock_class: of the limit's locks, whose second keys are 1 to `count`.
        start: begins a task of the incarnation.
    """

    def __init__(
        self,
        lock_class: int,
        count: int,
        session: Session,
        others: Others,
        *,
        start: Callable[[Coroutine[Any, Any, None], str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Called when there may be a free one.
        self.free: Callable[[], None] = _nobody
        self._class = lock_class
        self._count = count
        self._session = session
        self._others = others
        self._start = start
        self._clock = clock
        self._contention = Contention()
        self._since: dict[int, float] = {}  # number -> when this runner got it
        self._idle: list[int] = []
        self._busy: list[int] = []
        self._giving: list[int] = []
        self._wanted = False
        self._told = float("-inf")
        self._not_before = float("-inf")
        self._outage = Outage("permits.failed", "permits.work_again", "turns with this limit wait")

    async def take(self, wanted: int) -> tuple[int, float]:
        """How many, and the seconds until the next try. Raises psycopg.Error; LeaseLost ends the life anyway."""
        self._wanted = True
        taken = self._take_idle(wanted)
        missing = wanted - taken
        now = self._clock()
        if not missing or now < self._not_before:
            return taken, max(POLL, self._not_before - now)
        got = await self._try(missing)
        taken += self._take_idle(missing)
        if got < missing and len(self._since) < self._count and now - self._told > BELIEVED / 3:
            self._told = now
            self._others.tell("wanted")
        return taken, POLL

    async def _try(self, missing: int) -> int:
        place = {"class": self._class, "count": self._count, "held": list(self._since), "wanted": missing}
        try:
            rows = await self._session.execute(_TRY, place)
        except PostgresError:
            # It may have locked some: those are known to nobody.
            strangers = [n for n in range(1, self._count + 1) if n not in self._since]
            await self._session.execute(_GIVE_BACK, {"class": self._class, "numbers": strangers})
            raise
        self._outage.worked()
        now = self._clock()
        for (number,) in rows:
            self._since[number] = now
            self._idle.append(number)
        return len(rows)

    def _take_idle(self, wanted: int) -> int:
        numbers, self._idle = self._idle[:wanted], self._idle[wanted:]
        self._busy += numbers
        return len(numbers)

    def failed(self, error: PostgresError) -> None:
        self._outage.failed(error)

    def give_back(self, count: int, *, used: bool) -> None:
        """`used`: by turns that have ended; the next ones may have them, unless others wait."""
        now = self._clock()
        numbers, self._busy = self._busy[:count], self._busy[count:]
        contended = self._contended(now)
        kept = [
            n
            for n in numbers
            if used and self._wanted and self._contention.keeps(now, self._since[n], contended=contended)
        ]
        self._idle += kept
        gone = [n for n in numbers if n not in kept]
        if gone:
            if contended and used:
                self._not_before = now + (YIELD if self._others.all_hear() else 2 * POLL)
            self._give(gone)
        if kept:
            self.free()

    def nobody_waits(self) -> None:
        """Of this runner."""
        self._wanted = False
        numbers, self._idle = self._idle, []
        if numbers:
            self._give(numbers)

    def hear(self, word: str) -> None:
        """What another runner has told."""
        if word == "wanted":
            self._contention.heard = self._clock()
        elif word == "free":
            self.free()

    def _contended(self, now: float) -> bool:
        others = self._others
        return self._contention.others_wait(now, all_hear=others.all_hear(), exist=others.exist())

    def _give(self, numbers: Iterable[int]) -> None:
        if not self._giving:
            self._start(self._give_all(), "permits")
        self._giving += numbers

    async def _give_all(self) -> None:
        """Held, for this runner, until they are unlocked: a lock of its own would be taken once more."""
        while self._giving:
            numbers = list(self._giving)
            try:
                await self._session.execute(_GIVE_BACK, {"class": self._class, "numbers": numbers})
            except LeaseLost:
                return
            except PostgresError as error:
                # Still locked, so still this runner's: for its next turns.
                self.failed(error)
                self._idle += numbers
            else:
                for number in numbers:
                    del self._since[number]
                if self._contended(self._clock()):
                    self._others.tell("free")
            self._giving = self._giving[len(numbers) :]
        self.free()


def _nobody() -> None:
    return
