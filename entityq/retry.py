"""When to try again: exponential backoff with full jitter, as pure functions."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Durations are in seconds. `total` bounds the whole, `attempts` (None: unbounded) the number of tries.

    Raises ValueError when a number makes no sense.
    """

    initial: float = 0.05
    factor: float = 2.0
    maximum: float = 5.0
    total: float = 5.0
    attempts: int | None = None

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


# Of handlers that raise what they do not declare: a hiccup is over within a second, an outage within the hour.
HANDLER_RETRY = RetryPolicy(initial=0.1, factor=3.0, maximum=60.0, total=3600.0, attempts=5)


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
