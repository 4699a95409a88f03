"""Tasks: plain functions that are called here, or sent with the same verbs as messages."""

import asyncio
from typing import Any

import pytest

from entityq import EntityQ, Failure, MalformedMessage
from entityq.address import Address
from entityq.call import task_address
from entityq.registration import TASK_MESSAGE
from tests.support.in_place import InPlace, InPlaceApp

app = InPlaceApp()


class Odd(Failure):
    number: int


@app.task
def add(x: int, y: int = 1) -> int:
    """Adds."""
    return x + y


@app.task(name="halves", shard_group="slow", timeout=3, primary_key="number")
async def halve(number: int) -> int:
    if number % 2:
        raise Odd(number=number)
    return number // 2


@app.task
def names(self: int, activation: int, function: int, arguments: int) -> list[int]:
    return [self, activation, function, arguments]


@pytest.fixture(autouse=True)
def in_place() -> InPlace:
    app.in_place = InPlace()
    return app.in_place


async def test_calling_it_runs_it_here(in_place: InPlace) -> None:
    assert add(2, 3) == 5
    assert await halve(4) == 2
    assert in_place.calls == []
    assert (add.__doc__, repr(add)) == ("Adds.", "<task add>")


async def test_the_verbs_send_it(in_place: InPlace) -> None:
    assert await add.ask(2, 3) == 5
    assert await (await add.send(2)) == 3
    assert await asyncio.to_thread(add.call, 2, y=5) == 7
    delayed = await asyncio.to_thread(add.delay, 2)
    assert await asyncio.to_thread(delayed.get) == 3
    assert await add.options(timeout=2)(1, 1) == 2
    assert await add.options(timeout=2).ask(1, 1) == 2
    assert [call.message.name for call in in_place.calls] == [TASK_MESSAGE] * 6
    assert [call.timeout for call in in_place.calls] == [None, None, None, None, 2, 2]


async def test_an_async_task_and_its_failure() -> None:
    assert await halve.ask(4) == 2
    with pytest.raises(Odd) as failure:
        await halve.ask(3)
    assert failure.value.number == 3


async def test_parameters_may_have_any_name() -> None:
    assert await names.ask(1, activation=2, function=3, arguments=4) == [1, 2, 3, 4]


def test_a_task_is_a_stateless_entity_type() -> None:
    found = app.definitions["halves"]
    assert found is halve.definition
    assert (found.stateless, found.shard_group, found.state.fields) == (True, "slow", ())
    assert set(found.messages) == {TASK_MESSAGE, "$forget"}
    run = found.messages[TASK_MESSAGE]
    assert (run.is_async, run.timeout, run.primary_key, run.persisted) == (True, 3, "number", True)
    assert app.definitions["add"].messages[TASK_MESSAGE].is_async is False


async def test_each_call_goes_to_an_id_of_its_own(in_place: InPlace) -> None:
    await add.send(1)
    await add.send(1)
    first, second = (call.address for call in in_place.calls)
    assert first != second
    assert first.type == second.type == "add"
    assert int(second.id) > int(first.id) > 0


async def test_calls_of_one_primary_key_meet_at_one_id(in_place: InPlace) -> None:
    for call in (halve.send(4), halve.options(timeout=1).send(number=4), halve.send(6)):
        await call
    await add.options(primary_key="4").send(1)
    first, second, other, option = in_place.calls
    assert first.address == second.address
    assert first.address != other.address
    assert (first.primary_key, other.primary_key) == ("4", "6")
    assert option.address == Address("add", first.address.id)


@pytest.mark.parametrize(
    ("key", "entity_id"),
    [
        ("", "cae66941d9efbd404e4d88758ea67670"),
        ("r-1", "58696c3c0270c4aafd3e4a6306b9b769"),
        ("Zürich ☃", "06151983b484c4cb669a2ec826b795f3"),
    ],
)
def test_the_id_of_a_key_is_a_frozen_format(key: str, entity_id: str) -> None:
    """Old and new code run side by side: repeats must meet whoever sends them."""
    assert task_address("add", key, lambda: 1) == Address("add", entity_id)


async def test_wrong_arguments_are_refused_at_the_sender(in_place: InPlace) -> None:
    untyped: Any = add
    with pytest.raises(MalformedMessage, match=r"payload of add\.run: x: Field required"):
        await untyped.send(y=1)
    assert in_place.calls == []


def test_importing_a_module_with_an_app_reads_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTITYQ_POSTGRES_URL", "no url at all")
    late = EntityQ("bank", namespace="other")
    late.task(double)
    assert set(late.definitions) == {"double"}
    assert late.new_id() < late.new_id()


def double(number: int) -> int:
    return number * 2
