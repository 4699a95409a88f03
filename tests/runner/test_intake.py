"""The intake against a model of senders, an outbox and a stream that loses what it likes."""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from entityq.address import Address
from entityq.entry import Entry
from entityq.envelope import Envelope
from entityq.runner.intake import Arrival, ShardIntake, Verdict

SENDERS = 3
SEND = st.integers(0, SENDERS - 1)


@dataclass
class Row:
    request_id: int
    seq: int
    sender: int
    committed: bool = False
    answered: bool = False


@dataclass
class Outbox:
    rows: list[Row] = field(default_factory=list[Row])
    last_seq: int = 0

    def draw(self, sender: int) -> Row:
        self.last_seq += 1
        row = Row(self.last_seq * 10, self.last_seq, sender)
        self.rows.append(row)
        return row

    def pending(self, after: int, position: int, page: int) -> list[Row]:
        found = [row for row in self.rows if row.committed and not row.answered]
        return [row for row in found if after < row.seq <= position][:page]


def arrival(entry_id: int, row: Row, n: int) -> Arrival:
    envelope = Envelope(row.request_id, Address("Account", "a"), "deposit", b"", True, row.sender)
    return Arrival(str(entry_id).encode(), Entry(b"", row.sender, n, row.seq), envelope)


class IntakeMachine(RuleBasedStateMachine):
    """Rules: what senders, Redis, the outbox reads and the mailboxes can do, in any order."""

    @initialize(max_waiting=st.integers(0, 3))
    def start(self, max_waiting: int) -> None:
        self.now = 0.0
        self.intake = self._new_intake(max_waiting)
        self.outbox = Outbox()
        self.open: dict[int, Row] = {}
        self.n: defaultdict[int, int] = defaultdict(int)
        self.stream: deque[Arrival] = deque()
        self.entries = 0
        self.running: dict[int, Row] = {}
        self.delivered: list[Row] = []
        self.position: int | None = None
        self.after = 0
        self.fetched: tuple[list[Row], bool] | None = None
        self.unpublished: list[Arrival] = []
        self.history: list[Arrival] = []

    # ----- senders

    @rule(sender=SEND)
    def begin_send(self, sender: int) -> None:
        if sender not in self.open:
            self.open[sender] = self.outbox.draw(sender)

    @rule(sender=SEND, published=st.booleans())
    def commit_send(self, sender: int, published: bool) -> None:
        row = self.open.pop(sender, None)
        if row is None:
            return
        row.committed = True
        self.n[sender] += 1
        self.entries += 1
        entry = arrival(self.entries, row, self.n[sender])
        if published:
            self._publish(entry)
        else:
            self.unpublished.append(entry)

    @precondition(lambda self: self.unpublished)
    @rule(data=st.data())
    def publish_late(self, data: st.DataObject) -> None:
        """It stood still between commit and publishing."""
        self._publish(self.unpublished.pop(data.draw(st.integers(0, len(self.unpublished) - 1))))

    @rule(sender=SEND)
    def burn(self, sender: int) -> None:
        """The outcome of an insert is unknown, and it was not committed."""
        self.n[sender] += 1

    # ----- Redis

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def lose_an_entry(self, data: st.DataObject) -> None:
        del self.stream[data.draw(st.integers(0, len(self.stream) - 1))]

    @precondition(lambda self: self.stream)
    @rule()
    def repeat_an_entry(self) -> None:
        self.stream.appendleft(self.stream[0])

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def bring_back(self, data: st.DataObject) -> None:
        """Stale data, as of a time at which some of it was there."""
        first = data.draw(st.integers(0, len(self.history) - 1))
        self.stream.extend(self.history[first:])

    @precondition(lambda self: self.fetched is None)
    @rule()
    def wait_for_long(self) -> None:
        """No read is on its way for so long."""
        self.now += 61

    @precondition(lambda self: self.fetched is None)
    @rule(max_waiting=st.integers(0, 3))
    def take_over(self, max_waiting: int) -> None:
        """Another owner, which knows nothing; what was not answered runs again."""
        self.intake = self._new_intake(max_waiting)
        self.position = None
        self.delivered = [row for row in self.delivered if row.request_id not in self.running]
        self.running = {}

    @precondition(lambda self: self.stream)
    @rule()
    def read_the_stream(self) -> None:
        self._entry(self.stream.popleft())

    # ----- reads of the outbox

    @precondition(lambda self: self.intake.catching_up and self.position is None)
    @rule()
    def begin_pass(self) -> None:
        self.intake.begin_pass()
        self.position, self.after = self.outbox.last_seq, 0

    @precondition(lambda self: self.position is not None and self.fetched is None)
    @rule(page=st.integers(1, 3))
    def fetch_a_page(self, page: int) -> None:
        """The snapshot of the read; what happens before `take_the_page` is not in it."""
        assert self.position is not None
        rows = self.outbox.pending(self.after, self.position, page)
        self.fetched = (rows, len(rows) == page)

    @precondition(lambda self: self.fetched is not None)
    @rule()
    def take_the_page(self) -> None:
        assert self.fetched is not None
        (rows, more), self.fetched = self.fetched, None
        for row in rows:
            if self.intake.take_row(row.request_id, row.seq) is Verdict.DELIVER:
                self._deliver(row)
        if more:
            self.after = rows[-1].seq
            return
        position, self.position = self.position, None
        assert position is not None
        for waiting, verdict in self.intake.end_pass(position):
            if verdict is Verdict.DELIVER:
                self._deliver(self._row(waiting.request_id))

    @precondition(lambda self: self.position is not None)
    @rule()
    def read_fails(self) -> None:
        self.intake.abandon_pass()
        self.position, self.fetched = None, None

    @rule()
    def sweep(self) -> None:
        missed = self.outbox.pending(0, self.outbox.last_seq, 1_000)
        if any(not self.intake.knows(row.request_id) for row in missed):
            self.intake.must_catch_up()

    # ----- mailboxes

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        row = self.running.pop(request_id)
        row.answered = True
        self.intake.answered(request_id)

    # ----- what must hold

    @invariant()
    def in_the_order_of_sending(self) -> None:
        for sender in range(SENDERS):
            seqs = [row.seq for row in getattr(self, "delivered", []) if row.sender == sender]
            assert seqs == sorted(set(seqs)), f"sender {sender} delivered as {seqs}"

    def teardown(self) -> None:
        """Left alone with its reads and sweeps, the intake delivers everything that was committed."""
        if not hasattr(self, "intake"):
            return
        for _ in range(50):
            while self.stream:
                self._entry(self.stream.popleft())
            if self.position is None and self.intake.catching_up:
                self.begin_pass()
            while self.position is not None:
                if self.fetched is None:
                    self.fetch_a_page(1_000)
                self.take_the_page()
            self.sweep()
            if not self.intake.catching_up and not self.stream:
                break
        self.in_the_order_of_sending()
        committed = {row.request_id for row in self.outbox.rows if row.committed}
        assert {row.request_id for row in self.delivered} == committed

    # ----- helpers

    def _new_intake(self, max_waiting: int) -> ShardIntake:
        return ShardIntake(max_waiting=max_waiting, max_senders=2, remember=60, clock=lambda: self.now)

    def _publish(self, entry: Arrival) -> None:
        self.stream.append(entry)
        self.history.append(entry)

    def _entry(self, entry: Arrival) -> None:
        if self.intake.take(entry) is Verdict.DELIVER:
            self._deliver(self._row(entry.request_id))

    def _deliver(self, row: Row) -> None:
        assert not row.answered, "an answered request was delivered again"
        assert row.request_id not in self.running, "a request was delivered twice"
        self.running[row.request_id] = row
        self.delivered.append(row)

    def _row(self, request_id: int) -> Row:
        return next(row for row in self.outbox.rows if row.request_id == request_id)


TestIntake = IntakeMachine.TestCase
TestIntake.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def served(*, max_waiting: int = 10) -> ShardIntake:
    intake = ShardIntake(max_waiting=max_waiting)
    intake.begin_pass()
    assert list(intake.end_pass(0)) == []
    return intake


def test_a_request_answered_while_a_read_is_on_its_way_is_not_delivered_again() -> None:
    intake = served()
    row = Row(10, 1, sender=7)
    assert intake.take(arrival(1, row, 1)) is Verdict.DELIVER
    intake.must_catch_up()
    intake.begin_pass()  # the read is sent, and its snapshot still has the row
    intake.answered(10)
    assert intake.take_row(10, 1) is Verdict.DROP


def test_an_answered_request_of_the_stream_needs_no_memory() -> None:
    intake = served()
    assert intake.take(arrival(1, Row(10, 1, sender=7), 1)) is Verdict.DELIVER
    intake.answered(10)
    assert not intake.knows(10)
    assert intake.take(arrival(1, Row(10, 1, sender=7), 1)) is Verdict.DROP


def test_more_entries_than_may_wait_cost_one_more_pass_at_once() -> None:
    intake = ShardIntake(max_waiting=1)
    intake.begin_pass()
    assert intake.take(arrival(1, Row(10, 1, sender=7), 1)) is Verdict.WAIT
    assert intake.take(arrival(2, Row(20, 2, sender=7), 2)) is Verdict.DROP
    assert [verdict for _, verdict in intake.end_pass(0)] == [Verdict.DELIVER]
    assert intake.catching_up


def test_what_a_failed_pass_should_have_covered_the_next_one_covers() -> None:
    intake = ShardIntake(max_waiting=10)
    assert intake.take(arrival(1, Row(50, 5, sender=7), 5)) is Verdict.WAIT
    assert len(intake.begin_pass()) == 1
    intake.abandon_pass()
    intake.begin_pass()
    list(intake.end_pass(0))
    assert intake.take(arrival(2, Row(60, 6, sender=7), 6)) is Verdict.DELIVER


def test_an_entry_that_the_pass_already_read_is_not_a_gap() -> None:
    intake = ShardIntake(max_waiting=10)
    intake.begin_pass()
    assert intake.take_row(50, 5) is Verdict.DELIVER
    assert intake.take(arrival(1, Row(50, 5, sender=7), 5)) is Verdict.WAIT
    assert [verdict for _, verdict in intake.end_pass(0)] == [Verdict.DROP]
    assert not intake.catching_up


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def unanswered_in(intake: ShardIntake, position: int, *rows: Row) -> list[Verdict]:
    """A pass that brings these."""
    intake.begin_pass()
    verdicts = [intake.take_row(row.request_id, row.seq) for row in rows]
    assert list(intake.end_pass(position)) == []
    return verdicts


def test_an_entry_that_is_published_long_after_its_answer_is_not_delivered() -> None:
    """Its sender stood still after the commit; a sweep found the request, and its number is the next one."""
    clock = Clock()
    intake = ShardIntake(clock=clock)
    unanswered_in(intake, 0)
    late, other, new = Row(10, 1, sender=7), Row(20, 2, sender=8), Row(30, 3, sender=7)
    intake.must_catch_up()
    assert unanswered_in(intake, 2, late, other) == [Verdict.DELIVER, Verdict.DELIVER]
    intake.answered(10)
    clock.now += 61
    intake.answered(20)
    assert not intake.knows(10)
    assert intake.take(arrival(1, late, 1)) is Verdict.WAIT
    assert intake.catching_up
    intake.begin_pass()
    assert list(intake.end_pass(2)) == []
    assert intake.take(arrival(2, new, 2)) is Verdict.DELIVER


def test_what_a_former_owner_answered_is_not_delivered() -> None:
    """And its entry was never read, or came back with stale data."""
    intake = ShardIntake()
    unanswered_in(intake, 5)
    assert intake.take(arrival(1, Row(50, 5, sender=7), 1)) is Verdict.WAIT
    unanswered_in(intake, 5)
    assert intake.take(arrival(2, Row(60, 6, sender=7), 2)) is Verdict.DELIVER
    assert not intake.catching_up


def test_the_first_entry_of_a_forgotten_sender_is_not_delivered_again() -> None:
    intake = ShardIntake(max_senders=1)
    unanswered_in(intake, 0)
    first = arrival(1, Row(10, 1, sender=7), 1)
    assert intake.take(first) is Verdict.DELIVER
    intake.answered(10)
    assert intake.take(arrival(2, Row(20, 2, sender=8), 1)) is Verdict.DELIVER
    assert intake.take(first) is Verdict.WAIT
    assert intake.catching_up
