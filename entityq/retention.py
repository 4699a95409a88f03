"""How long requests are kept after their reply."""

import math
from dataclasses import dataclass
from datetime import timedelta

# Seconds. A client that lost the answer of an insert sends the same request id again, for a while: it must
# still find its own request then.
SHORTEST_KEEP = 60.0

Duration = float | timedelta


@dataclass(frozen=True, slots=True)
class Retention:
    """Of one message, in seconds from the reply on; None: as the settings say.

    After `keep` the reply and the payload go, after `keep_keys` the primary key does. A key that would go
    before its reply goes with it.
    """

    keep: float | None = None
    keep_keys: float | None = None

    def filled(self, keep: float, keep_keys: float) -> tuple[float, float]:
        """Both, with the settings' values where the message says nothing."""
        kept = keep if self.keep is None else self.keep
        return kept, max(kept, keep_keys if self.keep_keys is None else self.keep_keys)


AS_SETTINGS_SAY = Retention()


def read_retention(what: str, keep: Duration | None, keep_keys: Duration | None) -> Retention:
    """As given to `@message` or `@app.task`; `what` names it in errors. Raises TypeError."""
    return Retention(_seconds(f"{what}: keep", keep), _seconds(f"{what}: keep_keys", keep_keys))


def _seconds(what: str, given: Duration | None) -> float | None:
    if given is None:
        return None
    seconds = given.total_seconds() if isinstance(given, timedelta) else float(given)
    if not SHORTEST_KEEP <= seconds < math.inf:
        raise TypeError(f"{what} must be at least {SHORTEST_KEEP:g} seconds, not {given}")
    return seconds
