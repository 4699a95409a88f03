"""When to try again: exponential backoff with full jitter, as pure functions."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a handler that ended in a defect runs again. Durations are in seconds.

    Before attempt n + 1 there is a pause of 0 to `initial * factor ** (n - 1)`, at most `maximum`. `total` bounds the
    whole, from the begin of the first attempt, `attempts` (None: unbounded) the number of tries. By default
    five attempts within some seconds. Raises ValueError when a number makes no sense.
    """

    initial: float = 0.1
    factor: float = 3.0
    maximum: float = 60.0
    total: float = 3600.0
    attempts: int | None = 5

    def __post_init__(self) -> None:
        if not 0 < self.initial < math.inf:
            raise ValueError(f"initial is a positive number of seconds, not {self.initial}")
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor is a number from 1, not {self.factor}")
        if not self.initial <= self.maximum < math.inf:
            raise ValueError(f"maximum is finite and not below initial, not {self.maximum}")
        if not self.total >= 0:
            raise ValueError(f"total is a number of seconds from 0, not {self.total}")
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts is a number from 1, not {self.attempts}")


HANDLER_RETRY = RetryPolicy()

# Of clients, for errors that pass: their callers wait meanwhile.
TRANSIENT = RetryPolicy(initial=0.05, factor=2.0, maximum=5.0, total=5.0, attempts=None)


def delay(policy: RetryPolicy, attempt: int, random: Callable[[], float]) -> float:
    """Seconds to wait after the failed attempt number `attempt` (from 1): full jitter, 0 to the ceiling.

    `random` gives numbers in [0, 1).
    """
    return random() * _ceiling(policy, attempt)


def next_delay(
    policy: RetryPolicy, attempt: int, elapsed: float, random: Callable[[], float]
) -> float | None:
    """As `delay`, cut to what is left of `total` after `elapsed` seconds; None: give up."""
    if policy.attempts is not None and attempt >= policy.attempts:
        return None
    left = policy.total - elapsed
    return min(delay(policy, attempt, random), left) if left > 0 else None


def _ceiling(policy: RetryPolicy, attempt: int) -> float:
    try:
        return min(policy.maximum, policy.initial * policy.factor ** (attempt - 1))
    except OverflowError:
        return policy.maximum
