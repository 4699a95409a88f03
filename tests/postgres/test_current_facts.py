"""The facts as a process knows them: when they are read again, and what is said when they cannot be."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

import pytest

from entityq.errors import PersistenceError
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.facts import Facts, Group
from tests.support.waiting import eventually_async

OPEN = Facts("n", UUID(int=0), 4, {"default": Group("default", 1, 4, 0)}, {"Account": "default"})
CLOSED = replace(OPEN, groups={"default": replace(OPEN.groups["default"], open=False)})


@asynccontextmanager
async def running(current: CurrentFacts) -> AsyncGenerator[None]:
    task = asyncio.create_task(current.run(), name="facts of a test")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_they_are_read_unasked_every_so_often() -> None:
    async def load() -> Facts:
        return CLOSED

    current = CurrentFacts(OPEN, load, every=0.05)
    async with running(current):
        await asyncio.wait_for(current.change(), 5)
    assert current.now is CLOSED


async def test_an_outage_and_its_end_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "entityq")
    failures = [PersistenceError(f"No answer {number}\nof Postgres", advice="") for number in range(2)]

    async def load() -> Facts:
        if failures:
            raise failures.pop(0)
        return OPEN

    current = CurrentFacts(OPEN, load)
    async with running(current):
        current.outdated()  # once: it is tried until it is done

        async def read() -> bool:
            return "facts.read_again" in caplog.text

        await eventually_async(read, 10.0, "the facts read again")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "No answer 0 of Postgres" in caplog.text


def test_what_is_closed() -> None:
    assert CLOSED.closed(["unknown", "Account"])
    assert not CLOSED.closed(["unknown"])
    assert not OPEN.closed(["Account"])
