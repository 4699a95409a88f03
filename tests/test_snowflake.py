"""Snowflakes: layout, order, clocks that step, threads, forks."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq import snowflake
from entityq.snowflake import EPOCH_MS, Snowflakes, client_machine

EPOCH = EPOCH_MS / 1000


class Clock:
    """Seconds since 1970, set by the test; waiting moves it, unless it is stopped."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.stopped = False
        self.waits = 0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits += 1
        if not self.stopped:
            self.now += seconds


def snowflakes(clock: Clock, machine: int = 1) -> Snowflakes:
    return Snowflakes(machine, clock=clock, wait=clock.wait)


def test_golden_layout() -> None:
    # 2026-11-23T20:05:01.250Z is 1_795_464_301_250 ms after 1970.
    ids = snowflakes(Clock(1_795_464_301.250), machine=1023)
    first, second = ids.new(), ids.new()
    assert first == (1_795_464_301_250 - 1_735_689_600_000) * 4_194_304 + 1023 * 4096
    assert second == first + 1


@pytest.mark.parametrize("machine", [-1, 1024])
def test_machine_numbers_out_of_range_are_refused(machine: int) -> None:
    with pytest.raises(ValueError, match="machine number"):
        Snowflakes(machine)


def test_client_machines_are_above_the_leased_ones() -> None:
    drawn = {client_machine() for _ in range(20_000)}
    assert min(drawn) == 512
    assert max(drawn) == 1023


def test_the_4097th_id_of_a_millisecond_waits_for_the_next() -> None:
    clock = Clock(EPOCH + 5)
    ids = snowflakes(clock)
    made = [ids.new() for _ in range(4096)]
    assert clock.waits == 0
    assert {each >> 22 for each in made} == {5000}
    assert ids.new() >> 22 == 5001
    assert clock.waits == 1


def test_a_clock_that_stepped_back_is_not_followed() -> None:
    clock = Clock(EPOCH + 3600)
    ids = snowflakes(clock)
    before = ids.new()
    clock.now -= 3000
    after = [ids.new() for _ in range(10_000)]
    assert sorted({before, *after}) == [before, *after]
    # 10,001 ids of 4,096 each: only two milliseconds were borrowed, each waited for.
    assert after[-1] >> 22 == 3_600_002
    assert clock.waits == 2


def test_a_clock_that_stands_still_does_not_stop_the_ids() -> None:
    clock = Clock(EPOCH + 1)
    clock.stopped = True
    ids = snowflakes(clock)
    made = [ids.new() for _ in range(9_000)]
    assert made == sorted(set(made))


def test_a_clock_before_the_epoch_gives_positive_ids() -> None:
    ids = snowflakes(Clock(0))
    assert 0 < ids.new() < ids.new() < 1 << 22


@given(st.lists(st.floats(min_value=-10, max_value=10), max_size=50), st.integers(1, 3000))
def test_always_increasing_whatever_the_clock_does(steps: list[float], burst: int) -> None:
    clock = Clock(EPOCH + 1000)
    ids = snowflakes(clock)

    def made() -> Iterator[int]:
        for step in steps:
            clock.now += step
            yield from (ids.new() for _ in range(burst if step < 0 else 1))

    seen = list(made())
    assert all(left < right for left, right in pairwise(seen))
    assert all(each >> 12 & 1023 == 1 for each in seen)


def let_others_run(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
    """A trace function: another thread may come in before each line of `new`."""
    if frame.f_code.co_filename != snowflake.__file__:
        return None
    time.sleep(0)
    return let_others_run


def test_threads_get_different_and_increasing_ids() -> None:
    ids = Snowflakes(1, clock=Clock(EPOCH + 1))
    start = threading.Barrier(8)

    def draw() -> list[int]:
        start.wait(timeout=30)
        return [ids.new() for _ in range(300)]

    threading.settrace(let_others_run)
    try:
        with ThreadPoolExecutor(8) as pool:
            drawn = [future.result(timeout=60) for future in [pool.submit(draw) for _ in range(8)]]
    finally:
        threading.settrace(None)
    assert all(each == sorted(each) for each in drawn)
    assert len({id_ for each in drawn for id_ in each}) == 8 * 300


FORKING = """
import os
from entityq import snowflake
from entityq.snowflake import Snowflakes
forgotten = Snowflakes(8)
del forgotten
ids = Snowflakes(7)
with ids._lock:  # as another thread of the parent may
    child = os.fork()
    if child == 0:
        machine = ids.new() >> 12 & 1023
        os._exit(0 if 512 <= machine <= 1023 else 1)
    _, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), ids.new() >> 12 & 1023)
"""


def test_a_forked_child_draws_its_own_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["0", "7"], "")
