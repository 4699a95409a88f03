"""What a look at a blocked loop finds, and what it does about it."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from psycopg.errors import LockNotAvailable
from redis.exceptions import RedisError

from entityq import message
from entityq.address import Address
from entityq.envelope import Envelope
from entityq.postgres.pinned_connection import LeaseLost
from entityq.runner import loop_watch
from entityq.runner.loop_watch import LAST_WORDS_DEADLINE, LIMIT, LoopWatch, Stall, Step
from entityq.runner.request import Request, running
from tests.support.live import LiveCluster
from tests.support.stage import Actor

CYCLE = 0.8

# ----- the decision


def steps(elapsed: list[float], limit: float = LIMIT) -> list[tuple[Step, float]]:
    """What is done, and when, of looks with these times between them."""
    stall, done = Stall(), list[tuple[Step, float]]()
    for each in elapsed:
        step, stall = stall.longer(each).next_step(limit)
        if step is not Step.WAIT:
            done.append((step, round(stall.seconds, 1)))
    return done


def test_a_blockage_is_reported_and_again_when_it_has_doubled() -> None:
    assert steps([0.5] * 59) == [(Step.REPORT, seconds) for seconds in (1.0, 2.0, 4.0, 8.0, 16.0)]


def test_one_of_less_than_a_second_is_not() -> None:
    assert steps([0.3, 0.3, 0.3]) == []


def test_looks_that_are_late_report_once_each() -> None:
    assert steps([1.0] * 5) == [(Step.REPORT, 1.0), (Step.REPORT, 2.0), (Step.REPORT, 4.0)]


def test_the_process_ends_at_the_limit_and_not_before() -> None:
    assert steps([CYCLE] * 37)[-1] == (Step.REPORT, 16.0)
    assert steps([CYCLE] * 38)[-1] == (Step.END, 30.4)


def test_a_process_that_did_not_run_has_not_seen_its_loop_stand_still() -> None:
    assert steps([60.0]) == [(Step.REPORT, 1.0)]
    assert steps([60.0] * 29)[-1] == (Step.REPORT, 16.0)


# ----- the end of the process


def ended_by(program: str) -> "subprocess.CompletedProcess[str]":
    imports = "import logging.handlers, threading\nfrom entityq.runner.loop_watch import leave\n"
    command = [sys.executable, "-c", imports + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_process_that_leaves_has_written_its_log() -> None:
    finished = ended_by(
        "kept = logging.handlers.MemoryHandler(100, target=logging.StreamHandler())\n"
        "logging.basicConfig(handlers=[kept])\n"
        "logging.warning('its last words')\n"
        "leave(0)"
    )
    assert finished.returncode == 70, finished
    assert finished.stderr == "its last words\n"


def test_it_leaves_in_time_also_when_the_log_is_stuck() -> None:
    finished = ended_by(
        "stuck = logging.StreamHandler()\n"
        "logging.basicConfig(handlers=[stuck])\n"
        "stuck.acquire()\n"
        "leave(0.2)\n"
        "threading.Thread(target=leave, args=[0]).start()\n"
        "threading.Event().wait()"
    )
    assert finished.returncode == 70, finished


# ----- a loop that is blocked


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Blocked:
    """A watch on the test's loop. While a look runs, in another thread, the loop stands still."""

    def __init__(self, record: Callable[[Request | None], Awaitable[None]] | None = None) -> None:
        self.recorded: list[int] = []
        self.leaves: list[float] = []
        self._clock = Clock()
        self._watch = LoopWatch(
            record or self._remember, limit=10.0, leave=self.leaves.append, clock=self._clock
        )

    async def _remember(self, request: Request | None) -> None:
        if request is not None:
            self.recorded.append(request.request_id)

    def look(self, count: int = 1, elapsed: float = CYCLE) -> None:
        """Blocks the calling loop."""

        async def looks() -> None:
            for _ in range(count):
                self._clock.now += elapsed
                await self._watch.look()

        thread = threading.Thread(target=lambda: asyncio.run(looks()))
        thread.start()
        thread.join()

    async def blocking_handler(self, looks: int) -> None:
        self.look(looks)

    async def blocking_in_a_task_of_its_own(self, looks: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.blocking_handler(looks))

    async def blocking_together_with_others(self, looks: int) -> None:
        await asyncio.gather(asyncio.sleep(0), self.blocking_handler(looks))


REQUEST = Request(Envelope(4711, Address("Account", "acct-1"), "deposit", b"", True, 0), 7, 42, None)


async def turn(handler: Coroutine[Any, Any, None]) -> None:
    """In a task of its own, as turns are."""

    async def run() -> None:
        running.set(REQUEST)
        await handler

    await asyncio.create_task(run(), name="entityq 1 turn Account/acct-1 4711")


async def test_the_report_names_the_request_and_shows_the_line(caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked()
    await turn(blocked.blocking_handler(3))
    (report,) = (record for record in caplog.records if "loop.blocked" in record.getMessage())
    first, *stack = report.getMessage().splitlines()
    assert report.levelname == "WARNING"
    assert first == "loop.blocked seconds=1.6 entity=Account/acct-1 request=4711 message=deposit"
    line = Blocked.blocking_handler.__code__.co_firstlineno + 1
    assert f'  File "{__file__}", line {line}, in blocking_handler' in stack
    assert stack[0].endswith(", in run")  # the turn, and not the loop and its callers
    assert blocked.leaves == []


@pytest.mark.parametrize(
    "handler", [Blocked.blocking_in_a_task_of_its_own, Blocked.blocking_together_with_others]
)
async def test_a_task_that_a_turn_has_started_is_its_request(
    handler: Callable[[Blocked, int], Coroutine[Any, Any, None]], caplog: pytest.LogCaptureFixture
) -> None:
    await turn(handler(Blocked(), 3))
    assert "loop.blocked seconds=1.6 entity=Account/acct-1 request=4711 message=deposit" in caplog.text


async def test_what_is_no_turn_is_named_by_its_task(caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked()
    await asyncio.create_task(blocked.blocking_handler(14), name="passivate Account/acct-2")
    assert "entity=- request=- message=- task='passivate Account/acct-2'" in caplog.text
    assert blocked.recorded == []
    assert blocked.leaves == [LAST_WORDS_DEADLINE, 0]


async def test_the_hooks_of_an_entity(cluster: LiveCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Who activates it is to blame; nobody is for its end, however it came to that, and the entity is named."""
    blocked = Blocked()

    class Blocking(Actor):
        async def on_activate(self) -> None:
            blocked.look(3)

        async def on_deactivate(self) -> None:
            blocked.look(3)

        @message
        async def visit(self) -> None:
            return

    app = cluster.app()
    blocking = cluster.actor(app, Blocking)
    member = await cluster.start(app)
    receipts = [await blocking.at(name).visit.send() for name in ("forgotten", "stopped")]
    for receipt in receipts:
        await receipt
    await blocking.at("forgotten").forget()
    await cluster.stop(member)
    lines = [record.getMessage().splitlines()[0] for record in caplog.records]
    assert [line.partition("seconds=1.6 ")[2] for line in lines if "loop.blocked" in line] == [
        f"entity=Blocking/forgotten request={receipts[0].request_id} message=visit",
        f"entity=Blocking/stopped request={receipts[1].request_id} message=visit",
        "entity=Blocking/forgotten request=- message=- in on_deactivate",
        "entity=Blocking/stopped request=- message=- in on_deactivate",
    ]


async def test_nothing_is_counted_where_an_instance_ends(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[object] = []

    async def count(culprit: object) -> None:
        counted.append(culprit)

    blocked = Blocked(count)
    running.set(Address("Account", "acct-3"))
    await asyncio.create_task(blocked.blocking_handler(14), name="passivate Account/acct-3")
    assert "loop.blocked_too_long seconds=10.4 entity=Account/acct-3 request=- " in caplog.text
    assert counted == [None]
    assert blocked.leaves == [LAST_WORDS_DEADLINE, 0]


async def test_nothing_is_said_of_a_loop_that_moves(caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked()
    for _ in range(30):
        await turn(blocked.blocking_handler(2))
        await asyncio.sleep(0)
    assert caplog.text == ""
    assert blocked.leaves == []


async def test_a_loop_that_moves_again_is_said_to_and_the_next_blockage_is_another_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blocked = Blocked()
    for _ in range(2):
        await turn(blocked.blocking_handler(3))
        await asyncio.sleep(0)
        blocked.look()
        await asyncio.sleep(0)
    reports = [record.getMessage().splitlines()[0].split(" entity")[0] for record in caplog.records]
    assert reports == ["loop.blocked seconds=1.6", "loop.unblocked seconds=1.6"] * 2


async def test_at_the_limit_the_attempt_is_recorded_and_the_process_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blocked = Blocked()
    await turn(blocked.blocking_handler(14))
    assert blocked.recorded == [4711]
    assert blocked.leaves == [LAST_WORDS_DEADLINE, 0]
    assert "loop.blocked_too_long seconds=10.4 entity=Account/acct-1 request=4711" in caplog.text


@pytest.mark.parametrize(
    "error", [LeaseLost("closed"), LockNotAvailable(), RedisError(), OSError(), TimeoutError()]
)
async def test_it_ends_also_when_the_attempt_cannot_be_recorded(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def lost(_request: Request | None) -> None:
        raise error

    blocked = Blocked(lost)
    await turn(blocked.blocking_handler(14))
    assert blocked.leaves == [LAST_WORDS_DEADLINE, 0]
    assert f"attempt.not_recorded request=4711: {error!r}" in caplog.text


async def test_or_when_postgres_does_not_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wedged(_request: Request | None) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(loop_watch, "RECORD_DEADLINE", 0.05)
    blocked = Blocked(wedged)
    await turn(blocked.blocking_handler(14))
    assert blocked.leaves == [LAST_WORDS_DEADLINE, 0]
    assert "attempt.not_recorded request=4711: no answer" in caplog.text


async def test_a_frozen_process_does_not_end_itself_when_it_wakes() -> None:
    blocked = Blocked()

    async def handler() -> None:
        blocked.look(3)
        blocked.look(1, elapsed=60.0)

    await turn(handler())
    assert blocked.leaves == []


def test_a_loop_that_was_closed_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def opened() -> Blocked:
        return Blocked()

    blocked = asyncio.run(opened())
    blocked.look(20)
    assert caplog.text == ""
    assert blocked.leaves == []
