"""Streaming replies, on a real cluster (see README.md here)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from entityq import (
    EntityDefect,
    EntityQError,
    Failure,
    Interrupted,
    ReplyExpired,
    RetryPolicy,
    SendTimeout,
    message,
)
from entityq.runner.chunk_writer import BOUNDS
from tests.support.live import LiveCluster, soon
from tests.support.stage import Actor

AGAIN = RetryPolicy(initial=0.01, maximum=0.01, attempts=5)


class Broken(Failure):
    at: int


class Printer(Actor):
    """Each value is told to the stage before it is yielded."""

    printed: int = 0

    @message(primary_key="key")
    async def count(self, n: int, key: str) -> AsyncIterator[int]:
        """From what is stored on; the gate "at 3" is before the value 3."""
        self._stage.tell(f"from {self.context.last_chunk}")
        last = self.context.last_chunk
        for number in range(0 if last is None else last + 1, n):
            await self._stage.enter(f"value {number}", f"at {number}")
            yield number
        self.printed += 1

    @message(concurrent=True)
    async def texts(self, n: int, size: int) -> AsyncIterator[str]:
        for number in range(n):
            self._stage.tell(f"text {number}")
            yield f"{number}".ljust(size)

    @message
    async def fail(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number
        raise Broken(at=n)

    @message(retry=AGAIN)
    async def stumble(self, n: int) -> AsyncIterator[int]:
        """Raises behind every second value."""
        self.printed += 1
        last = self.context.last_chunk
        for number in range(0 if last is None else last + 1, n):
            yield number
            if number % 2:
                raise ValueError(number)

    @message(retry=AGAIN)
    async def wrong(self) -> AsyncIterator[int]:
        self._stage.tell("wrong")
        yield 1
        yield "two"  # type: ignore[misc] # pyright: ignore[reportReturnType] # the test is that it is refused

    @message
    async def clean(self) -> AsyncIterator[int]:
        try:
            yield 1
            await self._stage.enter("waits", "g")
            yield 2
        finally:
            self._stage.tell("cleaned")

    @message
    async def total(self) -> int:
        return self.printed


async def collected(values: Any) -> list[Any]:
    async with aclosing(values):
        return [value async for value in values]


async def into(values: list[Any], stream: AsyncGenerator[Any, None]) -> None:
    """What came before an error is there, too."""
    async with aclosing(stream):
        async for value in stream:
            values += [value]


async def chunks(cluster: LiveCluster) -> int:
    (count,) = await cluster.rows("SELECT count(*) FROM chunk")
    return int(count)


async def test_ent_03_all_values_arrive_in_order_and_the_state_is_saved(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    assert [value async for value in printer.count.stream(500, "k")] == list(range(500))
    assert await printer.total() == 1
    assert [value async for value in printer.count.stream(0, "none")] == []


async def test_del_15_a_stream_is_one_request_its_chunks_and_one_reply(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    receipt = await printer.count.send(3, "k")
    assert await receipt == 3
    assert await collected(receipt.stream()) == [0, 1, 2]
    assert (await cluster.requests(), await chunks(cluster), await cluster.replies()) == (1, 3, 1)


async def test_del_16_a_stream_waits_for_a_place_in_the_mailbox(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer, mailbox_capacity=2).at("a")
    await cluster.start(app)
    cluster.stage.close("at 0")
    others = [await printer.count.send(1, f"other {n}") for n in range(6)]
    await cluster.stage.saw("value 0")
    reading = asyncio.create_task(collected(printer.count.stream(3, "k")))
    await soon(lambda: _equal(cluster.pending(), 7), "all requests")
    cluster.stage.open("at 0")
    assert await reading == [0, 1, 2]
    assert [await other for other in others] == [1] * 6


async def _equal(value: Any, expected: int) -> bool:
    return bool(await value == expected)


async def test_del_20_a_new_owner_goes_on_behind_what_is_stored(cluster: LiveCluster) -> None:
    """The caller of before sees neither gap nor repeat, and another one can begin where it wants to."""
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    first = await cluster.start(app)
    cluster.stage.close("at 3")
    receipt = await printer.count.send(5, "k")
    reading = asyncio.create_task(collected(receipt.stream()))
    await cluster.stage.saw("value 3")
    await soon(lambda: _equal(chunks(cluster), 3), "three chunks")
    await cluster.crash(first)
    cluster.stage.open("at 3")
    await cluster.start(app, "r2")
    assert await reading == [0, 1, 2, 3, 4]
    assert await collected(receipt.stream(after=3)) == [3, 4]
    assert cluster.stage.lines("from ") == ["None", "2"]
    assert (await cluster.requests(), await chunks(cluster), await cluster.replies()) == (1, 5, 1)


async def test_a_repeat_of_a_stream_that_runs_and_of_one_that_has_ended_gets_all_values(
    cluster: LiveCluster,
) -> None:
    """Also one of another client, which is told nothing."""
    app, other = cluster.app(), cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    elsewhere = cluster.actor(other, Printer).at("a")
    await cluster.start(app)
    cluster.stage.close("at 150")
    streams = [printer.count.stream(200, "k"), elsewhere.count.stream(200, "k")]
    readings = [asyncio.create_task(collected(stream)) for stream in streams]
    await cluster.stage.saw("value 150")
    readings.append(asyncio.create_task(collected(printer.count.stream(200, "k"))))
    cluster.stage.open("at 150")
    assert await asyncio.gather(*readings) == [list(range(200))] * 3
    assert await collected(elsewhere.count.stream(200, "k")) == list(range(200))
    assert cluster.stage.lines("from ") == ["None"]


async def test_a_slow_reader_holds_the_handler_back(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    async with aclosing(printer.texts.stream(1_000, 1)) as values:
        for number in range(300):
            assert await anext(values) == str(number)
            if number % 50 == 0:
                # As far as it may, and no further.
                held = len(cluster.stage.lines("text "))
                assert held <= number + BOUNDS.ahead + 1, number
        rest = [value async for value in values]
    assert rest[-1] == "999"
    assert len(rest) == 700


async def test_large_values_are_held_back_by_their_bytes(cluster: LiveCluster) -> None:
    """And read from the table: too large for the channel."""
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    size = 300 * 1024
    async with aclosing(printer.texts.stream(40, size)) as values:
        assert len(await anext(values)) == size
        await soon(lambda: _at_least(chunks(cluster), 13), "as far as it may")
        assert len(cluster.stage.lines("text ")) <= BOUNDS.ahead_bytes // size + 2
        assert len([value async for value in values]) == 39


async def _at_least(value: Any, expected: int) -> bool:
    return bool(await value >= expected)


async def test_a_failure_comes_behind_the_values(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    values: list[int] = []
    with pytest.raises(Broken) as broken:
        await into(values, printer.fail.stream(30))
    assert (values, broken.value.at) == (list(range(30)), 30)


async def test_a_defect_runs_the_handler_again_behind_its_last_value(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    assert await collected(printer.stumble.stream(7)) == list(range(7))
    assert await printer.total() == 1
    values: list[int] = []
    with pytest.raises(EntityDefect, match="ValueError"):
        await into(values, printer.stumble.stream(20))
    assert values == list(range(10))


async def test_trn_02_a_value_that_does_not_fit_ends_the_stream_with_a_defect(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    values: list[int] = []
    with pytest.raises(EntityDefect, match=r"chunk of Printer\.wrong"):
        await into(values, printer.wrong.stream())
    assert values == [1]
    assert cluster.stage.journal == ["wrong"]


async def test_a_cancel_ends_the_stream_behind_its_values(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    receipt = await printer.clean.send()
    await cluster.stage.saw("waits")
    await receipt.cancel()
    values: list[int] = []
    with pytest.raises(Interrupted):
        await into(values, receipt.stream())
    assert values == [1]
    assert "cleaned" in cluster.stage.journal


async def test_del_10_a_reader_whose_client_is_closed_is_told(cluster: LiveCluster) -> None:
    app, other = cluster.app(), cluster.app()
    cluster.actor(app, Printer)
    printer = cluster.actor(other, Printer).at("a")
    await cluster.start(app)
    cluster.stage.close("at 1")
    reading = asyncio.create_task(collected(printer.count.stream(5, "k")))
    await cluster.stage.saw("value 1")
    await other.close()
    with pytest.raises(EntityQError, match="closed"):
        await asyncio.wait_for(reading, 5)


async def test_without_redis_values_are_read_from_the_table(cluster: LiveCluster) -> None:
    app, mute = cluster.app(), cluster.app(redis_url="redis://127.0.0.1:1")
    cluster.actor(app, Printer)
    printer = cluster.actor(mute, Printer).at("a")
    await cluster.start(app)
    assert await collected(printer.count.stream(300, "k")) == list(range(300))


async def test_no_value_in_time_is_a_timeout(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    cluster.stage.close("at 1")
    values: list[int] = []
    with pytest.raises(SendTimeout, match=r"within 0\.3 s"):
        await into(values, printer.count.options(timeout=0.3).stream(2, "k"))
    assert values == [0]


async def test_forget_and_retention_take_the_values(cluster: LiveCluster) -> None:
    app = cluster.app()
    printer = cluster.actor(app, Printer).at("a")
    await cluster.start(app)
    receipt = await printer.count.send(3, "k")
    assert await receipt == 3
    await printer.forget()
    assert await chunks(cluster) == 0
    with pytest.raises(ReplyExpired):
        await collected(receipt.stream())


async def test_inside_of_a_turn_and_as_one_reply_it_is_refused(cluster: LiveCluster) -> None:
    app = cluster.app()
    asker = cluster.actor(app, Asker)
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="cannot be asked to stream"):
        await asker.at("a").read()
    with pytest.raises(TypeError, match="async for"):
        asker.at("a").numbers()


class Asker(Actor):
    @message
    async def numbers(self) -> AsyncIterator[int]:
        yield 1

    @message
    async def read(self) -> list[int]:
        return [value async for value in type(self).at("b").numbers.stream()]
