"""Who has been silent for a whole lease time: decided from what one observer has read itself, on its own clock."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from entityq.postgres.heartbeat import Holder
from entityq.postgres.lease_session import Backend

# Reads further apart than this, in seconds, prove little about the time in between: Postgres may have stood
# still, or we. With a short lease time it is a third of that: a silence is seen by at least four reads.
LONGEST_GAP = 1.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """A runner's session, and for how many seconds it was seen silent. `postponed`: those that did not count."""

    holder: Holder
    silent: float
    postponed: float = 0.0


@dataclass(frozen=True, slots=True)
class _Silence:
    """`since`: when the first read of this counter had been answered. `postponed`: the seconds since then that
    do not count. `overdue`: how many reads would have proved it, had they counted."""

    row_of: int | None
    heartbeat: int | None
    since: float
    lease_time: float
    postponed: float = 0.0
    overdue: int = 0

    @property
    def due(self) -> float:
        """When a read can prove it."""
        return self.since + self.postponed + self.lease_time


class Suspicion:
    """Of one observer. Its reads must be those that write its own counter: then a stall of Postgres that keeps
    the others from writing keeps it from reading.

    A session is silent for as long as the longer one of its own lease time and the observer's. Not judged: the
    observer itself, runners whose code has no heartbeat, and sessions that are no runners'.
    """

    def __init__(self, me: Backend, lease_time: float) -> None:
        self.postponed: list[Suspect] = []
        self._me = me
        self._lease_time = lease_time
        self._gap = min(LONGEST_GAP, lease_time / 3)
        self._asked = float("-inf")
        self._silences: dict[tuple[int, datetime], _Silence] = {}

    def observe(self, asked: float, answered: float, holders: Iterable[Holder]) -> list[Suspect]:
        """One read, with the times before and after it: everything is counted from the side that is later for
        the others, because nobody knows when in between the server has read.

        Returns those to be evicted. `postponed` are then those who would be among them by now had all reads been
        regular; each silence is in it once, and not when a stall has just ended: the others beat first.
        """
        lost = uncounted(asked - self._asked, answered - self._asked, self._gap, self._lease_time)
        known, self._silences = self._silences, {}
        self._asked, self.postponed = asked, []
        suspects: list[Suspect] = []
        for holder in holders:
            if holder.started is None or not self._is_judged(holder):
                continue
            key = (holder.pid, holder.started)
            silence = self._continued(known.get(key), holder, lost, answered)
            suspect = Suspect(holder, asked - silence.since, silence.postponed)
            if asked >= silence.due:
                suspects.append(suspect)
            elif suspect.silent >= silence.lease_time:
                silence = replace(silence, overdue=silence.overdue + 1)
                if silence.overdue == 2:
                    self.postponed.append(suspect)
            self._silences[key] = silence
        return suspects

    @property
    def next_due(self) -> float:
        """The earliest time at which a read can prove a silence; infinity while there is nobody to judge."""
        return min((silence.due for silence in self._silences.values()), default=float("inf"))

    def _continued(self, before: _Silence | None, holder: Holder, lost: float, answered: float) -> _Silence:
        if before is None or (before.row_of, before.heartbeat) != (holder.row_of, holder.heartbeat):
            lease_time = max(self._lease_time, holder.lease_time or 0.0)
            return _Silence(holder.row_of, holder.heartbeat, answered, lease_time)
        # Never to be proved sooner than if this were the first read.
        postponed = min(before.postponed + lost, answered - before.since)
        return replace(before, postponed=postponed)

    def _is_judged(self, holder: Holder) -> bool:
        if holder.is_backend(self._me) or holder.incarnation is None:
            return False
        # A runner's session without a row has no counter that could move: it has one lease time to join.
        return holder.row_of is None or holder.heartbeat is not None


def uncounted(elapsed: float, span: float, gap: float, lease_time: float) -> float:
    """How many of the seconds since the last read prove nothing about the others.

    `elapsed`: from question to question. `span`: from the last question to this answer; within `gap`, all of it
    counts. After a whole lease time nothing does: we were silent ourselves. In between Postgres is slow, and the
    others' beats are late as ours are: half a gap counts, so that one stall proves next to nothing, and a server
    that is always slow only makes it take longer.
    """
    if span <= gap:
        return 0.0
    if span > lease_time:
        return float("inf")
    return max(0.0, elapsed - gap / 2)
