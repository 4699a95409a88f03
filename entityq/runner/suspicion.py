"""Who has been silent for a whole lease time: decided from what one observer has read itself, on its own clock."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from entityq.postgres.heartbeat import Holder
from entityq.postgres.lease_session import Backend

# Reads further apart than this, in seconds, prove nothing about the time in between: Postgres may have stood
# still, or we. With a short lease time it is a third of that: a silence is seen by at least four reads.
LONGEST_GAP = 1.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """A runner's session to be evicted, and for how many seconds it was seen silent."""

    holder: Holder
    silent: float


@dataclass(frozen=True, slots=True)
class _Silence:
    """`since`: when the first read of this counter had been answered."""

    row_of: int | None
    heartbeat: int | None
    since: float


class Suspicion:
    """Of one observer. Its reads must be those that write its own counter: then a stall of Postgres that keeps
    the others from writing keeps it from reading.

    Not judged: the observer itself, runners whose code has no heartbeat, and sessions that are no runners'.
    """

    def __init__(self, me: Backend, lease_time: float) -> None:
        self._me = me
        self._lease_time = lease_time
        self._gap = min(LONGEST_GAP, lease_time / 3)
        self._asked = float("-inf")
        self._silences: dict[tuple[int, datetime], _Silence] = {}

    def observe(self, asked: float, answered: float, holders: Iterable[Holder]) -> list[Suspect]:
        """One read, with the times before and after it: everything is counted from the side that is later for
        the others, because nobody knows when in between the server has read."""
        known = {} if answered - self._asked > self._gap else self._silences
        self._asked = asked
        self._silences = {}
        suspects: list[Suspect] = []
        for holder in holders:
            if holder.started is None or not self._is_judged(holder):
                continue
            key = (holder.pid, holder.started)
            now = _Silence(holder.row_of, holder.heartbeat, answered)
            before = known.get(key)
            if before and (before.row_of, before.heartbeat) == (now.row_of, now.heartbeat):
                now = before
            self._silences[key] = now
            if asked - now.since >= self._lease_time:
                suspects.append(Suspect(holder, asked - now.since))
        return suspects

    @property
    def next_due(self) -> float:
        """The earliest time at which a read can prove a silence; infinity while there is nobody to judge."""
        return min(
            (silence.since + self._lease_time for silence in self._silences.values()), default=float("inf")
        )

    def _is_judged(self, holder: Holder) -> bool:
        if holder.is_backend(self._me) or holder.incarnation is None:
            return False
        # A runner's session without a row has no counter that could move: it has one lease time to join.
        return holder.row_of is None or holder.heartbeat is not None
