"""Whether Redis is worth another try: a circuit breaker, as a decision and the thin object that keeps it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from entityq.outage import Outage

# So many failures in a row open it, for so many seconds. After them one try decides.
THRESHOLD = 3
COOL_DOWN = 1.0


@dataclass(frozen=True, slots=True)
class BreakerState:
    """`open_until` is a time of the breaker's clock."""

    failures: int = 0
    open_until: float = 0.0


def allows(state: BreakerState, now: float) -> bool:
    return now >= state.open_until


def after_failure(state: BreakerState, now: float) -> BreakerState:
    failures = min(state.failures + 1, THRESHOLD)
    return BreakerState(failures, now + COOL_DOWN if failures == THRESHOLD else 0.0)


class Breaker:
    """One for all that a process does of one kind; `name` and `instead` are for its lines in the log."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = "redis.publish",
        instead: str = "runners are told through Postgres meanwhile",
    ) -> None:
        self._clock = clock
        self._outage = Outage(f"{name}_failed", f"{name}_works_again", instead, clock=clock)
        self._state = BreakerState()

    @property
    def closed(self) -> bool:
        """Whether to try."""
        return allows(self._state, self._clock())

    def failed(self, error: Exception) -> None:
        self._outage.failed(error)
        self._state = after_failure(self._state, self._clock())

    def succeeded(self) -> None:
        self._outage.worked()
        self._state = BreakerState()
