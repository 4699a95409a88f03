"""How many turns may start in a time, and how many may run at once."""

import math
import re
from dataclasses import dataclass
from typing import Literal, cast

# Of starts that are spread evenly, those of so many seconds may come together.
SMOOTH = 0.1

# Each is a lock in Postgres, whose table of locks is small.
MOST_IN_CLUSTER = 1_000

_TEXT = re.compile(r"(\d+)/([smh])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}

RateScope = Literal["entity", "runner", "cluster"]
RunningScope = Literal["runner", "cluster"]


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`count` turns may start in `per` seconds, evenly spread, of which `burst` may come together.

        @message(rate_limit=RateLimit(10, per=1.0, scope="cluster"))

    In any t seconds at most `burst + t * count / per` start. By default a burst is what starts in 0.1 s, at least 1.
    scope: what is counted together: the turns of one "entity", those of each "runner", or those of the "cluster".
    Raises ValueError when a number makes no sense.
    """

    count: int
    per: float = 1.0
    scope: RateScope = "runner"
    burst: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is a number from 1, not {self.count}")
        if not 0 < self.per < math.inf:
            raise ValueError(f"per is a positive number of seconds, not {self.per}")
        if self.scope not in ("entity", "runner", "cluster"):
            raise ValueError(f"scope is entity, runner or cluster, not {self.scope!r}")
        if self.burst is not None and self.burst < 1:
            raise ValueError(f"burst is a number from 1, not {self.burst}")

    @property
    def interval(self) -> float:
        """Seconds from one start to the next."""
        return self.per / self.count

    @property
    def together(self) -> int:
        """How many may start at one moment."""
        return max(1, round(SMOOTH / self.interval)) if self.burst is None else self.burst


@dataclass(frozen=True, slots=True)
class MaxRunning:
    """At most `count` turns run at once: on each "runner", or in the "cluster" (then 1,000 at most).

    Raises ValueError when the number makes no sense.
    """

    count: int
    scope: RunningScope = "runner"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is a number from 1, not {self.count}")
        if self.scope not in ("runner", "cluster"):
            raise ValueError(f"scope is runner or cluster, not {self.scope!r}")
        if self.scope == "cluster" and self.count > MOST_IN_CLUSTER:
            raise ValueError(f"count is at most {MOST_IN_CLUSTER} in a cluster, not {self.count}")


@dataclass(frozen=True, slots=True)
class Limit:
    """Of a message, or of all messages of a type together."""

    rate: RateLimit | None = None
    running: MaxRunning | None = None

    def __bool__(self) -> bool:
        return self.rate is not None or self.running is not None


UNLIMITED = Limit()


def read_limit(what: str, rate: RateLimit | str | None, running: MaxRunning | int | None) -> Limit:
    """As given to a decorator; `what` names it in errors. Raises TypeError."""
    try:
        return Limit(
            read_rate(rate) if isinstance(rate, str) else rate,
            MaxRunning(running) if isinstance(running, int) else running,
        )
    except ValueError as error:
        raise TypeError(f"{what}: {error}") from None


def read_rate(text: str) -> RateLimit:
    """Of "100/m": so many per second (s), minute (m) or hour (h), on each runner. Raises ValueError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f'rate_limit is written as "10/s", "100/m" or "1000/h", not {text!r}')
    count, unit = cast("tuple[str, str]", match.groups())
    return RateLimit(int(count), _SECONDS[unit])
