"""What the owner of a shard does with each entry of its stream and each row of its outbox.

One state machine for every kind of loss. The intake is either *serving* (entries are taken in the order
of their senders' numbers) or *catching up* (the outbox is read in passes; entries wait, or are dropped
when too many wait). A gap, a flush, trimming, a takeover, an overflow and a sweep that found something
all end in catching up. No I/O and no awaits: `catching_up.py` drives it.

No request is delivered after its answer. What could bring it then:

- a row: of a read that was sent before the answer. Answers are remembered for longer than a read can take
  (`statement_timeout`);
- an entry that this intake took in its sender's order, brought again by the own pending entries, a repeated
  XADD or stale data of Redis: its number is old;
- an entry of a request that the outbox brought first: its sender stood still between commit and publishing,
  or a former owner answered it. Its number may well be the next one. It is known while the answer is
  remembered; whatever could have been forgotten has a seq up to `_doubtful`, and of those requests only a
  pass says whether they are unanswered.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from entityq.entry import Entry
from entityq.envelope import Envelope
from entityq.runner.sender_order import Position, SenderOrder

# Of the outbox: none is greater.
LAST_SEQ = 2**63 - 1


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
        max_senders: those whose place in the order is known.
        remember: seconds for which an answered request is remembered when an entry or a read that is
            already on its way could still bring it. Longer than any read takes.
    """

    def __init__(
        self,
        *,
        max_waiting: int = 2_000,
        max_senders: int = 10_000,
        remember: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order = SenderOrder(max_senders)
        self._max_waiting = max_waiting
        self._remember = remember
        self._clock = clock
        self._catching_up = True
        self._waiting: deque[Arrival] = deque()
        # sender -> highest n, with its seq, that only the outbox can bring now
        self._dropped: dict[int, tuple[int, int]] = {}
        # The same, as of the begin of the running pass.
        self._covered: dict[int, tuple[int, int]] = {}
        self._live: dict[int, int] = {}  # queued or running -> its seq if it came from the outbox, or 0
        # -> until when, the same seq, and the seq wherever it came from
        self._answered: OrderedDict[int, tuple[float, int, int]] = OrderedDict()
        self._reads = 0
        self._doubtful = 0
        self._first_pass = True

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
                if entry.seq <= self._doubted() and not self.knows(arrival.request_id, entry.seq):
                    self.must_catch_up()
                    return self._hold(arrival)
                self._order.advance(entry.sender, entry.n, entry.seq)
                return self._deliver(arrival.request_id, entry.seq)

    def _doubted(self) -> int:
        """Up to this seq, a request that is not known may have been answered."""
        return max(self._doubtful, self._order.forgotten)

    def _hold(self, arrival: Arrival) -> Verdict:
        if len(self._waiting) < self._max_waiting:
            self._waiting.append(arrival)
            return Verdict.WAIT
        self._drop(arrival.entry)
        return Verdict.DROP

    def _drop(self, entry: Entry) -> None:
        self._dropped[entry.sender] = max((entry.n, entry.seq), self._dropped.get(entry.sender, (0, 0)))

    def _deliver(self, request_id: int, seq: int = 0, *, from_outbox: bool = False) -> Verdict:
        if self.knows(request_id, seq):
            return Verdict.DROP
        self._live[request_id] = seq if from_outbox else 0
        return Verdict.DELIVER

    def take_volatile(self, request_id: int) -> bool:
        """Whether a volatile entry is new: the own pending entries are read again after an error."""
        return self._deliver(request_id) is Verdict.DELIVER

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

    def take_row(self, request_id: int, seq: int) -> Verdict:
        """Decide about one row that a read of the outbox brought, in outbox order."""
        return self._deliver(request_id, seq, from_outbox=True)

    def end_pass(self, position: int) -> Iterator[tuple[Arrival, Verdict]]:
        """Everything that was unanswered when the pass began, with a seq up to `position`, has been read.

        Yields the entries that waited, with what becomes of them. Afterwards `catching_up` tells whether
        another pass is needed.
        """
        self._reads -= 1
        if self._first_pass:
            # What it did not bring, former owners may have answered.
            self._first_pass = False
            self._doubtful = max(position, self._doubtful)
        for sender, (n, seq) in self._covered.items():
            self._order.advance(sender, n, seq)
        self._covered = {}
        self._catching_up = False
        waiting, self._waiting = self._waiting, deque()
        for arrival in waiting:
            yield arrival, self._replay(arrival)
        if self._dropped:
            self.must_catch_up()

    def _replay(self, arrival: Arrival) -> Verdict:
        if not self._catching_up and self.knows(arrival.request_id, arrival.entry.seq):
            # The pass read it, and so all that its sender sent before it.
            self._order.advance(arrival.entry.sender, arrival.entry.n, arrival.entry.seq)
            return Verdict.DROP
        return self.take(arrival)

    def abandon_pass(self) -> None:
        """The pass failed (Postgres did not answer): the next one must cover what this one should have."""
        self._reads -= 1
        for sender, last in self._covered.items():
            self._dropped[sender] = max(last, self._dropped.get(sender, (0, 0)))
        self._covered = {}

    # ----- what is known

    def begin_read(self) -> None:
        """A read of the outbox outside a pass (one entity's) is on its way."""
        self._reads += 1

    def end_read(self) -> None:
        self._reads -= 1

    def knows(self, request_id: int, seq: int = 0) -> bool:
        """A greater seq than the one that it was answered with is a new life: parked and due, or requeued."""
        if request_id in self._live:
            return True
        answered = self._answered.get(request_id)
        return answered is not None and seq <= answered[2]

    def answered(self, request_id: int, seq: int = LAST_SEQ) -> None:
        """The request's reply is committed, or it is parked: whatever brings it with that seq again is old."""
        row_seq = self._live.pop(request_id, 0)
        if row_seq or self._reads:
            self._answered[request_id] = self._clock() + self._remember, row_seq, seq
            self._answered.move_to_end(request_id)
        while self._answered and next(iter(self._answered.values()))[0] < self._clock():
            _, (_, row_seq, _) = self._answered.popitem(last=False)
            self._doubtful = max(row_seq, self._doubtful)

    def forget(self, request_id: int) -> None:
        """The request left the runner unanswered; the outbox can bring it again."""
        self._live.pop(request_id, None)
