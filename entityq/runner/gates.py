"""What a turn with a limit has to pass before it starts; each of them is one limit, for all lines that share it."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from psycopg import Error as PostgresError
from redis.exceptions import RedisError

from entityq.redis.breaker import Breaker
from entityq.redis.rates import SharedRates
from entityq.runner.gcra import Pace, take
from entityq.runner.permits import Permits

# Seconds until a line looks again at a gate that says when something has changed.
NO_HURRY = 1.0


class Listeners:
    """Called when a gate may let more through than it has said. Whoever was first is last the next time."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def remove(self, call: Callable[[], None]) -> None:
        self._calls.remove(call)

    def call(self) -> None:
        for call in list(self._calls):
            call()
        self._calls.rotate(-1)


class Gate(Protocol):
    """`listeners`: of the lines in which somebody waits. `tells`: whether it calls them; a rate has its time."""

    listeners: Listeners
    tells: bool

    def at_once(self) -> bool:
        """Lets one through, if that can be said without asking anybody."""
        ...

    async def take(self, wanted: int) -> tuple[int, float]:
        """How many of `wanted` it lets through, and after how many seconds to ask for the others."""
        ...

    def give_back(self, count: int, *, started: bool) -> None:
        """Of turns that have ended, or have not started after all."""
        ...

    def nobody_waits(self) -> None: ...


class LocalRate:
    """A rate of this runner, or of one entity in it."""

    tells = False

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self.listeners = Listeners()
        self._pace = pace
        self._clock = clock
        self._arrival = 0.0

    @property
    def used_until(self) -> float:
        """On the clock: from then on it is as if nothing had ever started."""
        return self._arrival

    def at_once(self) -> bool:
        return not self.listeners and self._take(1)[0] == 1

    async def take(self, wanted: int) -> tuple[int, float]:
        return self._take(wanted)

    def _take(self, wanted: int) -> tuple[int, float]:
        taken = take(self._pace, self._arrival, self._clock(), wanted)
        self._arrival = taken.arrival
        return taken.granted, taken.wait

    def give_back(self, count: int, *, started: bool) -> None:
        if not started:
            self._arrival -= count * self._pace.interval

    def nobody_waits(self) -> None:
        return


class SharedRate:
    """A rate of the cluster. While Redis does not answer, each runner keeps to its share.

    `sharers`: how many live runners there are to share it.
    """

    tells = False

    def __init__(
        self,
        name: str,
        pace: Pace,
        rates: SharedRates,
        breaker: Breaker,
        *,
        sharers: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.listeners = Listeners()
        self._name = name
        self._pace = pace
        self._rates = rates
        self._breaker = breaker
        self._sharers = sharers
        self._clock = clock
        self._not_before = 0.0
        self._arrival = 0.0

    def at_once(self) -> bool:
        return False

    async def take(self, wanted: int) -> tuple[int, float]:
        now = self._clock()
        if now < self._not_before:
            return 0, self._not_before - now
        granted, wait = await self._ask(wanted)
        self._not_before = self._clock() + wait if granted < wanted else 0.0
        return granted, wait

    async def _ask(self, wanted: int) -> tuple[int, float]:
        if self._breaker.closed:
            pace = self._pace
            try:
                answer = await self._rates.take(
                    self._name, interval=pace.interval, burst=pace.burst, wanted=wanted
                )
            except (RedisError, OSError, TimeoutError) as error:
                self._breaker.failed(error)
            else:
                self._breaker.succeeded()
                return answer
        taken = take(self._pace.shared(self._sharers()), self._arrival, self._clock(), wanted)
        self._arrival = taken.arrival
        return taken.granted, taken.wait

    def give_back(self, count: int, *, started: bool) -> None:
        """What is taken and not used is lost: there is more in a moment."""

    def nobody_waits(self) -> None:
        return


class LocalRunning:
    """So many turns at once on this runner."""

    tells = True

    def __init__(self, count: int) -> None:
        self.listeners = Listeners()
        self._free = count

    def at_once(self) -> bool:
        if self.listeners or self._free < 1:
            return False
        self._free -= 1
        return True

    async def take(self, wanted: int) -> tuple[int, float]:
        granted = min(wanted, self._free)
        self._free -= granted
        return granted, NO_HURRY

    def give_back(self, count: int, *, started: bool) -> None:
        del started
        self._free += count
        self.listeners.call()

    def nobody_waits(self) -> None:
        return


class SharedRunning:
    """So many turns at once in the cluster. One gate for its permits."""

    tells = True

    def __init__(self, permits: Permits) -> None:
        self.listeners = Listeners()
        permits.free = self.listeners.call
        self._permits = permits

    def at_once(self) -> bool:
        return False

    async def take(self, wanted: int) -> tuple[int, float]:
        try:
            return await self._permits.take(wanted)
        except PostgresError as error:
            self._permits.failed(error)
            return 0, NO_HURRY

    def give_back(self, count: int, *, started: bool) -> None:
        self._permits.give_back(count, used=started)

    def nobody_waits(self) -> None:
        self._permits.nobody_waits()
