from hypothesis import given
from hypothesis import strategies as st

from entityq.client.read_schedule import PAUSES, ReadSchedule


def reads_of(request_id: int, schedule: ReadSchedule, waiting: set[int], until: float) -> list[float]:
    """The times at which it is read, when everything is read as soon as it is due."""
    times: list[float] = []
    while (due := schedule.next_due()) is not None and due <= until:
        if request_id in schedule.due(due, waiting):
            times.append(round(due, 6))
    return times


def test_reads_come_after_100_ms_and_then_ever_later_up_to_a_second() -> None:
    schedule = ReadSchedule()
    schedule.add(1, now=10.0)
    assert reads_of(1, schedule, {1}, 15.0) == [10.1, 10.3, 10.7, 11.5, 12.5, 13.5, 14.5]


def test_who_waits_no_more_costs_nothing() -> None:
    schedule = ReadSchedule()
    schedule.add(1, now=10.0)
    assert schedule.due(20.0, set[int]()) == set()
    assert schedule.next_due() is None


def test_an_additional_read_is_now_and_changes_nothing_else() -> None:
    schedule = ReadSchedule()
    schedule.add(1, now=10.0)
    schedule.hasten([1, 2])
    assert schedule.next_due() == 0.0
    assert schedule.due(10.05, {1, 2}) == {1, 2}
    assert schedule.next_due() == 10.0 + PAUSES[0]


@given(st.lists(st.floats(0, 3), min_size=1, max_size=50), st.floats(0.001, 0.5))
def test_nobody_waits_longer_than_the_longest_pause_and_a_tick(starts: list[float], tick: float) -> None:
    schedule = ReadSchedule()
    last = dict(enumerate(starts))
    now = 0.0
    added: set[int] = set()
    while now < 6.0:
        for request_id, start in enumerate(starts):
            if start <= now and request_id not in added:
                schedule.add(request_id, now)
                added.add(request_id)
                last[request_id] = now
        for request_id in schedule.due(now, added):
            last[request_id] = now
        assert all(now - last[request_id] <= PAUSES[-1] + tick + 1e-9 for request_id in added)
        now += tick
