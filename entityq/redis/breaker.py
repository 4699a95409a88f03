"""Whether Redis is worth another try: a circuit breaker, as a decision and the thin object that keeps it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

# So many failures in a row open it, for so many seconds. After them one try decides.
THRESHOLD = 3
COOL_DOWN = 1.0
# Seconds without a failure after which the next one is an outage of its own, with a line in the log.
CALM = 10.0

_log = logging.getLogger(__name__)


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
    """One for all that a process does of one kind; `name` and `instead` are for its two lines in the log, at
    the begin of an outage and when it works again."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = "redis.publish",
        instead: str = "runners are told through Postgres meanwhile",
    ) -> None:
        self._clock = clock
        self._name = name
        self._instead = instead
        self._state = BreakerState()
        self._since: float | None = None
        self._last = -CALM

    @property
    def closed(self) -> bool:
        """Whether to try."""
        return allows(self._state, self._clock())

    def failed(self, error: Exception) -> None:
        now = self._clock()
        if now - self._last >= CALM:
            self._since = now
            # A deadline of our own has no text.
            why = str(error) or "no answer in time"
            _log.warning("%s_failed: %s; %s", self._name, why, self._instead)
        self._last = now
        self._state = after_failure(self._state, now)

    def succeeded(self) -> None:
        if self._since is not None:
            _log.info("%s_works_again after %.1f s", self._name, self._clock() - self._since)
            self._since = None
        self._state = BreakerState()
