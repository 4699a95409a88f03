"""The bounded places that a turn holds: a slot, a part of the prefetch, a resident entity."""

from collections.abc import Generator
from contextlib import contextmanager

from entityq.runner.deferrals import Deferrals
from entityq.runner.prefetch import Prefetch
from entityq.runner.residents import Residents
from entityq.runner.turn_slots import TurnSlots


class Places:
    """A turn that only waits for another one holds none of them: the other one may need them."""

    def __init__(
        self, slots: TurnSlots, prefetch: Prefetch, residents: Residents, deferrals: Deferrals
    ) -> None:
        self._slots = slots
        self._prefetch = prefetch
        self._residents = residents
        self._deferrals = deferrals

    @contextmanager
    def lent_waiting(self, behind: int) -> Generator[None]:
        """The same for a request that waits to become a turn, and has no slot yet."""
        with self._prefetch.lent(1 + behind), self._residents.lent():
            self._deferrals.look_again()
            yield

    @contextmanager
    def lent(self, behind: int) -> Generator[None]:
        """`behind`: how many requests can be in the mailbox of the turn's entity, which wait with it."""
        with self._slots.lent(), self._prefetch.lent(1 + behind), self._residents.lent():
            self._deferrals.look_again()
            yield
