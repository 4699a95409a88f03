"""A cancel is a cancellation of the turn's task, while its handler runs, and at no other time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from entityq import Entity, EntityQ, message
from entityq.address import Address
from entityq.envelope import NOBODY, Envelope
from entityq.runner.request import Request
from entityq.runner.turn import interruptible

app = EntityQ("interruption")


@app.entity
class Worker(Entity):
    @message
    async def work(self) -> None: ...

    @message(uninterruptible=True)
    async def insist(self) -> None: ...

    @message
    def block(self) -> None: ...


def new_request() -> Request:
    return Request(Envelope(1, Address("Worker", "a"), "work", b"", True, NOBODY), 0, 1, None)


class Turn:
    """A task that runs `handler` as a turn does; `left`: the cancellations that it has from elsewhere at the end."""

    def __init__(self, name: str, handler: Callable[[], Awaitable[object]]) -> None:
        self.request = new_request()
        self.left: int | None = None
        self.task = asyncio.create_task(self._run(name, handler))

    async def _run(self, name: str, handler: Callable[[], Awaitable[object]]) -> None:
        try:
            with interruptible(self.request, app.definitions["Worker"].messages[name]):
                await handler()
        finally:
            task = asyncio.current_task()
            assert task is not None
            self.left = task.cancelling()


async def test_a_cancel_interrupts_the_handler_and_leaves_nothing() -> None:
    waiting = asyncio.Event()
    turn = Turn("work", waiting.wait)
    await asyncio.sleep(0)
    turn.request.cancel()
    turn.request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn.task
    assert turn.left == 0


async def test_a_handler_that_goes_on_is_not_interrupted_again() -> None:
    interruptions: list[str] = []
    again = asyncio.Event()

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            interruptions.append("once")
            await again.wait()

    turn = Turn("work", handler)
    await asyncio.sleep(0)
    turn.request.cancel()
    await asyncio.sleep(0)
    turn.request.cancel()
    again.set()
    await turn.task
    assert (interruptions, turn.left) == (["once"], 0)


async def test_the_end_of_the_runner_is_not_taken_for_a_cancel() -> None:
    turn = Turn("work", asyncio.Event().wait)
    await asyncio.sleep(0)
    turn.request.cancel()
    turn.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn.task
    assert turn.left == 1


async def test_nothing_is_interrupted_when_the_handler_has_ended() -> None:
    """Its turn waits for its commit."""
    ended, committed = asyncio.Event(), asyncio.Event()
    request = new_request()

    async def turn() -> str:
        with interruptible(request, app.definitions["Worker"].messages["work"]):
            await asyncio.sleep(0)
        ended.set()
        await committed.wait()
        return "committed"

    task = asyncio.create_task(turn())
    await ended.wait()
    request.cancel()
    committed.set()
    assert await task == "committed"
    assert request.cancelled


@pytest.mark.parametrize("name", ["insist", "block"])
async def test_some_handlers_are_not_interrupted(name: str) -> None:
    going_on = asyncio.Event()
    turn = Turn(name, going_on.wait)
    await asyncio.sleep(0)
    turn.request.cancel()
    going_on.set()
    await turn.task
    assert turn.left == 0
