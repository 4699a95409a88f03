"""When to look for timers that are due: decisions without input and output.

Times are seconds on the runner's own monotonic clock, except where they are the database's: those are turned into
the other by what the last look has said of the database's clock. Clocks of machines are never compared.
"""

import math

from entityq.postgres.channels import LOOK_FOR_TIMERS_EVERY
from entityq.postgres.timers import Fired

# Seconds between two looks: many timers that are due one after the other share their statements.
GAP = 0.01
PAUSE_AFTER_FAILURE = 0.2


class TimerPlan:
    """Between `begin` and `looked` or `failed` a look is under way; what it may have missed is kept for the next."""

    def __init__(self) -> None:
        self._at = -math.inf
        self._not_before = -math.inf
        self._ahead: float | None = None  # the database's clock minus ours

    @property
    def next_look(self) -> float:
        return max(self._at, self._not_before)

    def look_by(self, at: float) -> None:
        """Something may be due then."""
        self._at = min(self._at, at)

    def heard(self, due: float) -> None:
        """A timer was set, and is due then by the database's clock."""
        # Before the first look everything is found by it.
        if self._ahead is not None:
            self.look_by(due - self._ahead)

    def begin(self) -> None:
        self._at = math.inf

    def looked(self, began: float, ended: float, fired: Fired) -> None:
        """Of a statement that was sent at `began`: the database's clock was read later, so that the next look is a
        little early rather than late. An early one finds nothing, and knows better."""
        self._ahead = fired.now - began
        self.look_by(ended + LOOK_FOR_TIMERS_EVERY)
        if fired.next is not None:
            self.heard(fired.next)
        if fired.more:
            self.look_by(ended)
        self._not_before = ended + GAP

    def failed(self, ended: float) -> None:
        self.look_by(ended)
        self._not_before = ended + PAUSE_AFTER_FAILURE
