"""What the owner of a shard does with each entry of its stream and each row of its outbox.

One state machine for every kind of loss. The intake is either *serving* (entries are taken in the order
of their senders' numbers) or *catching up* (the outbox is read in passes; entries wait, or are dropped
when too many wait). A gap, a flush, trimming, a takeover, an overflow and a sweep that found something
all end in catching up. No I/O and no awaits: `catching_up.py` drives it.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from entityq.entry import Entry
from entityq.envelope import Envelope
from entityq.runner.sender_order import Position, SenderOrder


class Verdict(Enum):
    """What becomes of one entry or row."""

    DELIVER = "deliver"
    WAIT = "wait"  # kept until the pass ends
    DROP = "drop"  # known, answered, or in the outbox for a later read: acknowledge the entry


@dataclass(slots=True)
class Arrival:
    """A persisted stream entry with its place in the stream."""

    entry_id: bytes
    entry: Entry
    envelope: Envelope

    @property
    def request_id(self) -> int:
        return self.envelope.request_id


class ShardIntake:
    """The intake of one shard, for one lease of it.

    Args:
        max_waiting: entries kept while a pass runs; more are dropped, which costs one more pass.
        remember: seconds for which an answered request is remembered when an entry or a read that is
            already on its way could still bring it.
    """

    def __init__(
        self,
        *,
        max_waiting: int = 2_000,
        remember: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order = SenderOrder()
        self._max_waiting = max_waiting
        self._remember = remember
        self._clock = clock
        self._catching_up = True
        self._waiting: deque[Arrival] = deque()
        self._dropped: dict[int, int] = {}  # sender -> highest n that only the outbox can bring now
        self._covered: dict[int, int] = {}  # the same, as of the begin of the running pass
        self._live: dict[int, bool] = {}  # queued or running -> whether it came from the outbox
        self._answered: OrderedDict[int, float] = OrderedDict()
        self._reads = 0

    @property
    def catching_up(self) -> bool:
        return self._catching_up

    def must_catch_up(self) -> None:
        """Something may have been missed: the next reads come from the outbox."""
        self._catching_up = True

    # ----- entries of the stream

    def take(self, arrival: Arrival) -> Verdict:
        """Decide about one persisted entry, in the order of the stream."""
        if self._catching_up:
            return self._hold(arrival)
        entry = arrival.entry
        match self._order.position(entry.sender, entry.n):
            case Position.OLD:
                return Verdict.DROP
            case Position.GAP:
                self.must_catch_up()
                return self._hold(arrival)
            case Position.NEXT:
                self._order.advance(entry.sender, entry.n)
                return self._deliver(arrival.request_id, from_outbox=False)

    def _hold(self, arrival: Arrival) -> Verdict:
        if len(self._waiting) < self._max_waiting:
            self._waiting.append(arrival)
            return Verdict.WAIT
        self._drop(arrival.entry)
        return Verdict.DROP

    def _drop(self, entry: Entry) -> None:
        if entry.n > self._dropped.get(entry.sender, 0):
            self._dropped[entry.sender] = entry.n

    def _deliver(self, request_id: int, *, from_outbox: bool) -> Verdict:
        if self.knows(request_id):
            return Verdict.DROP
        self._live[request_id] = from_outbox
        return Verdict.DELIVER

    def take_volatile(self, request_id: int) -> bool:
        """Whether a volatile entry is new: the own pending entries are read again after an error."""
        return self._deliver(request_id, from_outbox=False) is Verdict.DELIVER

    # ----- passes over the outbox

    def begin_pass(self) -> list[Arrival]:
        """Call before the first read of a pass is sent.

        Whatever arrived until now was committed before it was published, so the reads of this pass bring
        it: those entries are given up (returned, to be acknowledged).
        """
        self._catching_up = True
        given_up = list(self._waiting)
        self._waiting.clear()
        for arrival in given_up:
            self._drop(arrival.entry)
        self._covered, self._dropped = self._dropped, {}
        self._reads += 1
        return given_up

    def take_row(self, request_id: int) -> Verdict:
        """Decide about one row that a read of the outbox brought, in outbox order."""
        return self._deliver(request_id, from_outbox=True)

    def end_pass(self) -> Iterator[tuple[Arrival, Verdict]]:
        """Everything that was unanswered when the pass began has been read.

        Yields the entries that waited, with what becomes of them. Afterwards `catching_up` tells whether
        another pass is needed.
        """
        self._reads -= 1
        for sender, n in self._covered.items():
            self._order.advance(sender, n)
        self._covered = {}
        self._catching_up = False
        waiting, self._waiting = self._waiting, deque()
        for arrival in waiting:
            yield arrival, self._replay(arrival)
        if self._dropped:
            self.must_catch_up()

    def _replay(self, arrival: Arrival) -> Verdict:
        if not self._catching_up and self.knows(arrival.request_id):
            # The pass read it, and so all that its sender sent before it.
            self._order.advance(arrival.entry.sender, arrival.entry.n)
            return Verdict.DROP
        return self.take(arrival)

    def abandon_pass(self) -> None:
        """The pass failed (Postgres did not answer): the next one must cover what this one should have."""
        self._reads -= 1
        for sender, n in self._covered.items():
            self._dropped[sender] = max(n, self._dropped.get(sender, 0))
        self._covered = {}

    # ----- what is known

    def begin_read(self) -> None:
        """A read of the outbox outside a pass (one entity's) is on its way."""
        self._reads += 1

    def end_read(self) -> None:
        self._reads -= 1

    def knows(self, request_id: int) -> bool:
        return request_id in self._live or request_id in self._answered

    def answered(self, request_id: int) -> None:
        """The request's reply is committed."""
        from_outbox = self._live.pop(request_id, False)
        if from_outbox or self._reads:
            self._answered[request_id] = self._clock() + self._remember
        while self._answered and next(iter(self._answered.values())) < self._clock():
            self._answered.popitem(last=False)

    def forget(self, request_id: int) -> None:
        """The request left the runner unanswered; the outbox can bring it again."""
        self._live.pop(request_id, None)
