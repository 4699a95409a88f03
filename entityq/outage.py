"""An outage in the log: a line when it begins, rare ones with a count while it lasts, one when it has ended."""

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

# Seconds without a failure after which the next one is an outage of its own.
CALM = 10.0
# Seconds between two lines of one outage: twice as long each time.
FIRST_PAUSE = 30.0
LONGEST_PAUSE = 600.0


class Outage:
    """Of one thing that a process, or a runner, does again and again.

    `failed` and `ended` name the events; `instead` says what happens meanwhile.
    """

    def __init__(
        self,
        failed: str,
        ended: str,
        instead: str,
        *,
        level: int = logging.WARNING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failed = failed
        self._ended = ended
        self._instead = instead
        self._level = level
        self._clock = clock
        # None: there is no end to tell of.
        self._since: float | None = None
        self._last = float("-inf")
        self._next_line = float("-inf")
        self._pause = FIRST_PAUSE
        self._failures = 0

    def failed(self, error: Exception, count: int = 1) -> None:
        """It failed, for so many at once."""
        now = self._clock()
        if self._since is None and now - self._last >= CALM:
            self._next_line, self._pause, self._failures = now, FIRST_PAUSE, 0
        self._last = now
        self._failures += count
        if now < self._next_line:
            return
        if self._since is None:
            self._since = now
        # A deadline of our own has no text.
        why = " ".join(str(error).split()) or "no answer in time"
        times = f" ({self._failures} times)" if self._failures > 1 else ""
        log.log(self._level, "%s: %s; %s%s", self._failed, why, self._instead, times)
        self._next_line = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def worked(self) -> None:
        """It works, again or still."""
        if self._since is not None:
            seconds = self._clock() - self._since
            log.info("%s after %.1f s, %d failures", self._ended, seconds, self._failures)
            self._since = None
