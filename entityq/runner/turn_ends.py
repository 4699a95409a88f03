"""How a turn can end without an answer: raised to its activation, which decides what comes next."""

from collections.abc import Sequence

from psycopg import Error as PostgresError

from entityq.postgres.outbox import NewRequest
from entityq.runner.commit import NotApplied, SendConflict


class TurnDropped(Exception):
    """The turn was not applied: its activation is dropped, and the outbox decides what comes next.

    `pause`: what was in the way is still there; trying at once would only run the handler again.
    `sends_to`: the entity types that it sends to, where the group of one of them is closed.
    """

    def __init__(
        self, outcome: NotApplied | SendConflict | PostgresError, sends: Sequence[NewRequest] = ()
    ) -> None:
        super().__init__(outcome.reason if isinstance(outcome, NotApplied) else str(outcome))
        refused = isinstance(outcome, NotApplied) and outcome.passing
        self.pause = isinstance(outcome, PostgresError) or refused
        self.sends_to = frozenset(send.address.type for send in sends if refused)


class TurnSetBack(Exception):
    """The attempt failed, which is on record, and the next one comes after `delay` seconds.

    `parked`: the request is no pending one until then.
    """

    def __init__(self, delay: float, *, parked: bool) -> None:
        super().__init__(f"again in {delay:.3g} s")
        self.delay = delay
        self.parked = parked


class TurnSuspended(Exception):
    """The attempt waits for a signal, which is on record, and the next one comes with it, or after `delay` seconds.

    `parked`: the request is no pending one until then. A `delay` of 0: the signal has come meanwhile. `as_of`: when
    the database was asked, on the clock of `time.monotonic`.
    """

    def __init__(self, name: str, delay: float, *, parked: bool, as_of: float) -> None:
        super().__init__(
            f"waits for the signal {name!r}" if delay else f"the signal {name!r} has come meanwhile"
        )
        self.delay = delay
        self.parked = parked
        self.as_of = as_of
