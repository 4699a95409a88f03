"""The generic cell rate algorithm: one number says how far a rate limit is used up. Pure functions.

The number is a time, the "theoretical arrival": when the next turn would start if all of them were spread evenly.
"""

import math
from dataclasses import dataclass

# Of an interval: what the arithmetic of floats can lose.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Pace:
    """`interval`: seconds from one start to the next; `burst`: how many may come together."""

    interval: float
    burst: int

    def shared(self, runners: int) -> "Pace":
        """What each of so many may do, so that together they keep to it."""
        return Pace(self.interval * runners, max(1, self.burst // runners))


@dataclass(frozen=True, slots=True)
class Taken:
    """`arrival`: the number to be kept; `wait`: seconds until one more may start."""

    granted: int
    arrival: float
    wait: float


def take(pace: Pace, arrival: float, now: float, wanted: int) -> Taken:
    """How many of `wanted` turns may start now."""
    # Never further ahead than a whole burst: the clock may be another one, or have gone back.
    arrival = min(max(arrival, now), now + pace.burst * pace.interval)
    tolerance = (pace.burst - 1) * pace.interval
    room = math.floor((now + tolerance - arrival) / pace.interval + 1 + _ROUNDING)
    granted = max(0, min(wanted, room))
    arrival += granted * pace.interval
    return Taken(granted, arrival, max(0.0, arrival - tolerance - now))
