"""Who is evicted: without a clock but the observer's own, and without a server."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.postgres.heartbeat import Holder
from entityq.postgres.lease_session import Backend
from entityq.runner.suspicion import Suspect, Suspicion

LEASE_TIME = 5.0
START = datetime(2025, 1, 1, tzinfo=UTC)
ME = Backend(1, START)


def runner(incarnation: int = 7, heartbeat: int | None = 0, *, pid: int = 2, shards: int = 3) -> Holder:
    return Holder(
        pid=pid,
        started=START,
        application=f"entityq:{incarnation}",
        number=4,
        shards=shards,
        row_of=incarnation,
        heartbeat=heartbeat,
    )


def suspects(
    reads: Sequence[tuple[float, Holder]], *, lease_time: float = LEASE_TIME, took: float = 0.0
) -> list[int]:
    """At which of the reads somebody was to be evicted, as their places in the sequence."""
    suspicion = Suspicion(ME, lease_time)
    return [n for n, (at, holder) in enumerate(reads) if suspicion.observe(at, at + took, [holder])]


def every(seconds: float, holder: Holder, count: int) -> list[tuple[float, Holder]]:
    return [(n * seconds, holder) for n in range(count)]


def test_a_lease_time_of_silence() -> None:
    assert suspects(every(0.5, runner(), 13)) == [10, 11, 12]


def test_the_suspect_says_how_long_it_was_silent() -> None:
    suspicion = Suspicion(ME, LEASE_TIME)
    found = [suspicion.observe(at, at, [holder]) for at, holder in every(0.5, runner(), 12)]
    assert [(suspect.holder.incarnation, suspect.silent) for suspect in found[11]] == [(7, 5.5)]


def test_one_heartbeat_is_enough() -> None:
    reads = [*every(0.5, runner(), 10), (5.0, runner(heartbeat=1)), (5.5, runner(heartbeat=1))]
    assert suspects(reads) == []


@pytest.mark.parametrize(
    "spared",
    [
        pytest.param(replace(runner(), pid=ME.pid), id="the observer"),
        pytest.param(runner(heartbeat=None), id="code without a heartbeat"),
        pytest.param(Holder(pid=2, started=START, application="psql", shards=1), id="a stranger"),
        pytest.param(replace(runner(), started=None), id="another role's"),
        pytest.param(Holder(pid=2, started=START, application="entityq:7 heart", shards=1), id="a heart"),
    ],
)
def test_who_is_not_judged(spared: Holder) -> None:
    assert suspects(every(0.5, spared, 30)) == []


@pytest.mark.parametrize(
    "judged",
    [
        pytest.param(replace(runner(), draining=True), id="draining"),
        pytest.param(replace(runner(), number=None), id="only shards"),
        pytest.param(runner(shards=0), id="only a number"),
        pytest.param(Holder(pid=2, started=START, application="entityq:7", shards=1), id="without a row"),
    ],
)
def test_who_is_judged(judged: Holder) -> None:
    assert suspects(every(0.5, judged, 11)) == [10]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(runner(), started=START + timedelta(seconds=1)), id="the pid is another's now"),
        pytest.param(runner(incarnation=8), id="it has joined again"),
        pytest.param(Holder(pid=2, started=START, application="entityq:7", shards=1), id="its row is gone"),
    ],
)
def test_a_new_session_has_a_lease_time_of_its_own(other: Holder) -> None:
    reads = [*every(0.5, runner(), 10), *((5.0 + n * 0.5, other) for n in range(11))]
    assert suspects(reads) == [20]


def test_one_that_was_away_is_a_new_one() -> None:
    suspicion = Suspicion(ME, LEASE_TIME)
    seen = [*every(0.5, runner(), 10), *((5.5 + n * 0.5, runner()) for n in range(10))]
    for at, holder in seen:
        assert suspicion.observe(at, at, [] if at == 5.5 else [holder]) == []


def test_reads_a_lease_time_apart_prove_nothing() -> None:
    assert suspects(every(LEASE_TIME + 0.1, runner(), 100)) == []


@pytest.mark.parametrize(
    ("took", "evicted_at"), [(0.3, 5.4), (0.6, 7.2), (1.2, 15.6), (2.0, 28.0)], ids="{} s".format
)
def test_a_server_that_is_always_slow_takes_longer(took: float, evicted_at: float) -> None:
    """One statement after the other, each of them as slow as a heart bears it, or less."""
    period = max(took, 0.6)
    reads = every(period, runner(), 100)
    (first, *_) = suspects(reads, took=took)
    assert first * period == pytest.approx(evicted_at)


def test_who_is_not_evicted_because_of_slow_reads_is_named_once() -> None:
    suspicion = Suspicion(ME, LEASE_TIME)
    told: list[tuple[float, int | None, float, float]] = []
    for at, holder in every(1.2, runner(), 13):
        assert suspicion.observe(at, at + 1.2, [holder]) == []
        told += [
            (at, each.holder.incarnation, round(each.silent, 1), round(each.postponed, 1))
            for each in suspicion.postponed
        ]
    assert told == [(8.4, 7, 7.2, 4.9)]


def test_after_a_stall_nobody_is_named_who_beats_then() -> None:
    suspicion = Suspicion(ME, LEASE_TIME)
    named: list[Suspect] = []
    for at, beats in ((0.0, 0), (0.7, 1), (60.0, 1), (60.7, 2), (61.4, 3), (90.0, 3), (90.7, 3)):
        assert suspicion.observe(at, at, [runner(heartbeat=beats)]) == []
        named += suspicion.postponed
    assert [(round(each.silent, 1), round(each.postponed, 1)) for each in named] == [(29.3, 28.6)]


def test_stalls_of_less_than_a_lease_time_prove_next_to_nothing() -> None:
    """A server that stands still for most of the time, and answers one read in between."""
    assert suspects(every(0.9 * LEASE_TIME, runner(), 10)) == []


@pytest.mark.parametrize(
    ("of_the_other", "evicted_at"),
    [(None, [10, 11]), (1.0, [10, 11]), (5.0, [10, 11]), (5.5, [11]), (60.0, [])],
)
def test_the_longer_one_of_two_lease_times_counts(of_the_other: float | None, evicted_at: list[int]) -> None:
    assert suspects(every(0.5, replace(runner(), lease_time=of_the_other), 12)) == evicted_at


def test_a_stall_of_the_observer_starts_the_clock_again() -> None:
    reads = [*every(0.5, runner(), 8), *((60.0 + n * 0.5, runner()) for n in range(11))]
    assert suspects(reads) == [18]


def test_a_stall_in_the_middle_of_a_read_starts_the_clock_again() -> None:
    """Nobody knows at which end of it the server has read."""
    suspicion = Suspicion(ME, LEASE_TIME)
    for at in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0):
        suspicion.observe(at, at, [runner()])
    assert suspicion.observe(4.5, 60.0, [runner()]) == []
    assert suspicion.observe(60.1, 60.1, [runner()]) == []
    assert suspicion.next_due == 65.1


def test_a_silence_counts_from_the_answer_to_the_question() -> None:
    """As if the counter had moved right after the one, and right before the other."""
    assert suspects(every(0.5, runner(), 13), took=0.3) == [11, 12]


def test_a_short_lease_time_needs_several_reads() -> None:
    assert suspects(every(0.6, runner(), 6), lease_time=1.5) == []
    assert suspects(every(0.4, runner(), 5), lease_time=1.5) == [4]


def test_when_a_silence_falls_due() -> None:
    suspicion = Suspicion(ME, LEASE_TIME)
    assert suspicion.next_due == float("inf")
    suspicion.observe(0.0, 0.1, [runner()])
    suspicion.observe(0.5, 0.6, [runner(), runner(9, pid=3)])
    assert suspicion.next_due == 5.1
    suspicion.observe(1.0, 1.1, [runner(heartbeat=1), runner(9, pid=3)])
    assert suspicion.next_due == 5.6


# ----- whatever the times

gaps = st.lists(st.floats(0.01, 3.0), min_size=1, max_size=60)


@given(
    gaps,
    st.lists(st.floats(0.0, 2.0), min_size=60, max_size=60),
    st.floats(0.0, LEASE_TIME - 0.01),
    st.floats(1.0, LEASE_TIME),
)
def test_nobody_is_evicted_whose_counter_moves_in_every_lease_time_of_its_own(
    pauses: list[float], lengths: list[float], period: float, lease_time: float
) -> None:
    """Whatever stalls the observer, or Postgres: the server reads at any time from the question to the answer."""
    suspicion = Suspicion(ME, lease_time)
    now = 0.0
    for pause, length in zip(pauses, lengths, strict=False):
        asked, read, answered = now, now + length / 3, now + length
        beats = int(read / max(period, 0.01))
        beating = replace(runner(heartbeat=beats), lease_time=LEASE_TIME)
        assert suspicion.observe(asked, answered, [beating]) == []
        now = answered + pause


@given(st.lists(st.tuples(st.floats(0.0, 0.7), st.floats(0.0, 2.0)), min_size=60, max_size=60))
def test_who_stands_still_is_evicted_however_slow_the_reads(reads: list[tuple[float, float]]) -> None:
    """As long as they are answered: after two lease times' worth of them, and those that the first one takes."""
    suspicion = Suspicion(ME, LEASE_TIME)
    now, regular, evicted = 0.0, True, False
    for pause, length in reads:
        regular = regular and length <= 0.3
        evicted = bool(suspicion.observe(now, now + length, [runner()]))
        if evicted:
            break
        now += length + max(pause, 0.5)
    assert evicted
    assert not regular or now < LEASE_TIME + 2.0


@given(
    st.lists(st.floats(0.0, 0.7), min_size=60, max_size=60),
    st.lists(st.floats(0.0, 0.14), min_size=60, max_size=60),
    st.integers(0, 10),
)
def test_who_stands_still_is_evicted_within_a_lease_time_and_a_cycle(
    pauses: list[float], lengths: list[float], beats: int
) -> None:
    """By regular reads: their times are added up to less than a second each. The last beat is the read's number
    `beats`, and the silence begins with its answer."""
    suspicion = Suspicion(ME, LEASE_TIME)
    now, silent_since, evicted = 0.0, 0.0, False
    for n, (pause, length) in enumerate(zip(pauses, lengths, strict=True)):
        asked, answered = now, now + length
        if n <= beats:
            silent_since = answered
        evicted = bool(suspicion.observe(asked, answered, [runner(heartbeat=min(n, beats))]))
        assert not (evicted and asked - silent_since < LEASE_TIME)
        # This read could not yet, and so the next one does.
        assert evicted or asked - silent_since < LEASE_TIME
        now = answered + pause
