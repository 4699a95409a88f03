"""Handlers that take longer than their message allows, and the time that their asks have."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from entityq import EntityDefect, EntityQ, RetryPolicy, SendTimeout, message
from entityq.address import Address
from entityq.envelope import Envelope
from entityq.runner.request import Request
from entityq.runner.time_limit import TimeLimitExceeded, limited, limited_thread
from tests.support.live import LiveCluster
from tests.support.stage import Actor

REQUEST = Request(Envelope(1, Address("Slow", "a"), "m", b"", True, 7), 1, 1, None)
SHORT, LONG = 0.05, 60.0
TWICE = RetryPolicy(initial=0.01, maximum=0.01, attempts=2)


# ----- on the loop


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_without_a_limit_it_takes_its_time() -> None:
    assert await limited(asyncio.sleep(0.01, "done"), None) == "done"
    assert await limited(asyncio.sleep(0.01, "done"), LONG) == "done"


async def test_what_takes_longer_is_cancelled() -> None:
    with pytest.raises(TimeLimitExceeded, match=r"longer than its time limit of 0\.05 s"):
        await limited(for_ever(), SHORT)


async def test_it_can_clean_up_and_not_escape() -> None:
    cleaned: list[str] = []

    async def swallows() -> str:
        try:
            await for_ever()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            cleaned.append("swallowed")
        return "as if nothing had happened"

    async def turns() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            cleaned.append("turned")
            raise ValueError("another error") from None

    for handler in (swallows, turns):
        with pytest.raises(TimeLimitExceeded):
            await limited(handler(), SHORT)
    assert cleaned == ["swallowed", "turned"]


async def test_an_own_timeout_is_an_error_of_the_handler() -> None:
    async def impatient() -> None:
        async with asyncio.timeout(SHORT):
            await for_ever()

    with pytest.raises(TimeoutError):
        await limited(impatient(), LONG)


async def test_whoever_cancels_the_turn_is_obeyed() -> None:
    task = asyncio.create_task(limited(for_ever(), LONG))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# ----- in a thread


async def in_thread(work: Callable[[], Any], seconds: float | None) -> Any:
    with ThreadPoolExecutor(1) as threads:
        handler = asyncio.get_running_loop().run_in_executor(threads, work)
        return await limited_thread(handler, seconds, REQUEST)


async def test_a_thread_is_waited_for_and_its_result_ignored(caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()

    def work() -> str:
        threading.Event().wait(SHORT * 2)
        ended.set()
        return "late"

    with pytest.raises(TimeLimitExceeded):
        await in_thread(work, SHORT)
    assert ended.is_set()
    assert "turn.over_time_limit request=1 entity=Slow/a seconds=0.05" in caplog.text


async def test_a_thread_in_time_is_as_always() -> None:
    def fail() -> None:
        raise KeyError("k")

    assert await in_thread(lambda: 7, LONG) == 7
    assert await in_thread(lambda: 7, None) == 7
    for seconds in (None, LONG):
        with pytest.raises(KeyError):
            await in_thread(fail, seconds)


# ----- on a cluster


class Slow(Actor):
    total: int = 0

    @message(time_limit=SHORT, retry=TWICE)
    async def sleep(self, once: bool) -> int:
        self.total += 1
        self._stage.tell(f"sleep {self.context.attempt}")
        if not once or self.context.attempt == 1:
            await for_ever()
        return self.total

    @message
    async def wait(self, gate: str) -> None:
        await self._stage.enter(f"wait {self.id}", gate)

    @message(time_limit=0.3, retry=RetryPolicy(attempts=1))
    async def ask_within_limit(self, other: str) -> str:
        return await self._ask(other)

    @message(retry=RetryPolicy(attempts=1))
    async def ask_within_deadline(self, other: str) -> str:
        return await self._ask(other)

    async def _ask(self, other: str) -> str:
        try:
            await type(self).at(other).wait.options(timeout=LONG)("g")
        except SendTimeout as error:
            return str(error.accepted.value)
        return "answered"


async def test_an_attempt_that_takes_longer_is_a_defect(cluster: LiveCluster) -> None:
    app = cluster.app()
    slow = cluster.actor(app, Slow)
    await cluster.start(app)
    assert await slow.at("a").sleep(True) == 1
    with pytest.raises(EntityDefect, match="raised TimeLimitExceeded while handling 'sleep'"):
        await slow.at("b").sleep(False)
    assert cluster.stage.journal == ["sleep 1", "sleep 2"] * 2
    assert await cluster.rows("SELECT error_type, attempts FROM dead_letter") == [
        ("entityq.runner.time_limit.TimeLimitExceeded", 2)
    ]


async def test_an_ask_has_no_more_time_than_the_turn_that_asks(cluster: LiveCluster) -> None:
    app = cluster.app()
    slow = cluster.actor(app, Slow)
    await cluster.start(app)
    cluster.stage.close("g")
    async with asyncio.timeout(10):
        with pytest.raises((EntityDefect, SendTimeout)):
            await slow.at("a").ask_within_limit("held")
        # Its caller waits for no more than this.
        with pytest.raises(SendTimeout):
            await slow.at("b").ask_within_deadline.options(timeout=0.3)("held")
        # The turn has heard of it, too.
        receipt = await slow.at("b").wait.send("")
        await receipt
    cluster.stage.open("g")


def test_a_time_limit_is_above_zero() -> None:
    app = EntityQ("limits")
    with pytest.raises(TypeError, match="time_limit must be above 0 seconds, not 0"):

        @app.task(time_limit=0)
        def task() -> None: ...
