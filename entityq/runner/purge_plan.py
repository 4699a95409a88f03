"""Where in the outbox a purge looks: request ids grow with time, so that what is due stands at known places.

A front per term (seven days, an hour, ...) goes along with the clock, past ids that are a little older than the
term: nearly everything is due there, and is looked at once per term. What was answered late, was unanswered, or
had a dead letter when the front passed is found by a round, which begins anew at the oldest row from time to time.
"""

from dataclasses import dataclass, field

from entityq.postgres.retention import Terms
from entityq.snowflake import EPOCH_MS

# Seconds. A front stays so far behind its term: requests are answered after they are sent.
LONGEST_LAG = 60.0
# Where the front of a new purger begins, before its term: the one before it, if any, has come further. What that
# one left is found by the first round.
HEAD_START = 600.0
# Seconds between the beginnings of two rounds.
SHORTEST_ROUND, LONGEST_ROUND = 1.0, 86_400.0
# A fraction of the shortest term: by so much more, about, things can be kept.
TENTH = 0.1


@dataclass(frozen=True, slots=True)
class Stretch:
    """Requests to look at: `after < id <= until`. `front`: of that term; None: of the round."""

    after: int
    until: int
    front: float | None


@dataclass(slots=True)
class PurgePlan:
    """Of one shard group. Times are those of the database's clock, in Unix seconds."""

    _fronts: dict[float, int] = field(default_factory=dict[float, int])
    _round_at: int = 0
    _round_until: int = 0
    _round_began: float = float("-inf")

    def stretches(self, terms: Terms) -> list[Stretch]:
        """What is to be looked at now: the fronts first."""
        self._fronts = {
            term: self._fronts.get(term, id_at(terms.now - term - lag(term) - HEAD_START))
            for term in terms.kept
        }
        self._begin_round(terms)
        found = [
            Stretch(after, id_at(terms.now - term - lag(term)), term) for term, after in self._fronts.items()
        ]
        found.append(Stretch(self._round_at, self._round_until, None))
        return [stretch for stretch in found if stretch.after < stretch.until]

    def done(self, stretch: Stretch, last: int, *, whole: bool) -> None:
        """It was looked at up to the id `last`; `whole`: there is no more in it."""
        reached = stretch.until if whole else last
        if stretch.front is None:
            self._round_at = reached
        else:
            self._fronts[stretch.front] = reached

    def _begin_round(self, terms: Terms) -> None:
        shortest = min(terms.kept)
        pause = min(max(TENTH * shortest, SHORTEST_ROUND), LONGEST_ROUND)
        if self._round_at >= self._round_until and terms.now >= self._round_began + pause:
            self._round_at, self._round_until = 0, id_at(terms.now - shortest)
            self._round_began = terms.now


def lag(term: float) -> float:
    return min(TENTH * term, LONGEST_LAG)


def id_at(seconds: float) -> int:
    """The smallest request id of a moment, in Unix seconds."""
    return max(0, int(seconds * 1000) - EPOCH_MS) << 22
