"""Sync programs: a thread behind the scenes, in each process its own."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from entityq.errors import EntityQError, PrimaryKeyConflict, RunnerUnavailable
from tests.client.bank import Bank, Outbox, answer, rows
from tests.support.processes import CommandLine, Finished
from tests.support.waiting import eventually

PROGRAMS = str(Path(__file__).with_name("sync_programs.py"))


@pytest.fixture
def sync_bank(postgres_url: str, redis_url: str, namespace: str) -> Iterator[Bank]:
    bank = Bank(namespace, postgres_url, redis_url)
    yield bank
    bank.app.close_blocking()
    assert not client_threads()


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "entityq client"]


def test_delay_sends_and_get_waits(sync_bank: Bank, outbox: Outbox) -> None:
    receipt = sync_bank.account("a").deposit.delay(1, reference="r")
    assert [row.request_id for row in rows(outbox)] == [receipt.request_id]
    answer(outbox, receipt.request_id, msgpack.packb(7))
    assert receipt.get(timeout=5) == 7
    assert receipt.get() == 7


def test_call_waits_for_the_reply(sync_bank: Bank, outbox: Outbox) -> None:
    replies: list[int] = []
    asking = threading.Thread(
        target=lambda: replies.append(sync_bank.account("a").deposit.call(1, reference="r"))
    )
    asking.start()
    row = eventually(lambda: next(iter(rows(outbox)), None))
    assert row is not None
    answer(outbox, row.request_id, msgpack.packb(7))
    asking.join(5)
    assert replies == [7]


def test_threads_share_one_client(sync_bank: Bank, outbox: Outbox) -> None:
    def send(number: int) -> None:
        sync_bank.account("a").deposit.delay(1, reference=f"r-{number}")

    threads = [threading.Thread(target=send, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    stored = rows(outbox)
    assert len(stored) == 20
    assert len({row.envelope.client for row in stored}) == 1
    assert len(client_threads()) == 1


def test_errors_arrive_as_they_are(sync_bank: Bank) -> None:
    sync_bank.account("a").deposit.delay(1, reference="r")
    with pytest.raises(PrimaryKeyConflict):
        sync_bank.account("a").deposit.delay(2, reference="r")
    with pytest.raises(RunnerUnavailable):
        sync_bank.account("a").deposit.options(timeout=0.3).call(1, reference="r")


def test_after_close_the_next_use_starts_again(sync_bank: Bank, outbox: Outbox) -> None:
    sync_bank.account("a").deposit.delay(1, reference="1")
    sync_bank.app.close_blocking()
    assert not client_threads()
    sync_bank.account("a").deposit.delay(1, reference="2")
    assert len({row.envelope.client for row in rows(outbox)}) == 2


async def test_a_running_loop_is_not_blocked(sync_bank: Bank, outbox: Outbox) -> None:
    account = sync_bank.account("a")
    with pytest.raises(EntityQError, match=r"block the running event loop.*await"):
        account.deposit.delay(1, reference="r")
    with pytest.raises(EntityQError, match="block the running event loop"):
        account.deposit.call(1, reference="r")
    async with sync_bank.app:
        receipt = await account.deposit.send(1, reference="r")
        with pytest.raises(EntityQError, match="block the running event loop"):
            receipt.get()
        assert len(rows(outbox)) == 1


async def test_a_receipt_can_be_waited_for_from_another_loop_or_thread(
    sync_bank: Bank, outbox: Outbox
) -> None:
    by_thread = await asyncio.to_thread(sync_bank.account("a").deposit.delay, 1, reference="1")
    async with sync_bank.app:
        by_loop = await sync_bank.account("a").deposit.send(1, reference="2")
        for receipt in (by_thread, by_loop):
            answer(outbox, receipt.request_id, msgpack.packb(7))
        assert await by_thread == 7
        assert await asyncio.to_thread(by_loop.get, 5) == 7
    with pytest.raises(EntityQError, match="is closed"):
        await asyncio.to_thread(by_loop.get, 5)
    await asyncio.to_thread(sync_bank.app.close_blocking)
    with pytest.raises(EntityQError, match="does not run in this process any more"):
        await by_thread


async def test_a_thread_of_an_async_program_can_use_its_client(sync_bank: Bank, outbox: Outbox) -> None:
    async with sync_bank.app.open_client() as client:
        receipt: Any = await asyncio.to_thread(client.blocking().send, sync_bank.note())
        answer(outbox, receipt.request_id, b"\xc0")
        assert await asyncio.to_thread(receipt.get, 5) is None
    assert not client_threads()


def run(entityq: CommandLine, program: str) -> Finished:
    started = time.monotonic()
    finished = entityq.spawn_program([sys.executable, PROGRAMS, program]).wait(20)
    assert time.monotonic() - started < 10, finished
    return finished


def test_the_interpreters_exit_does_not_hang(entityq: CommandLine, outbox: Outbox) -> None:
    finished = run(entityq, "exits")
    assert finished.code == 0
    assert finished.stderr == ""
    assert finished.stdout.split() == ["sent", str(rows(outbox)[0].request_id)]
    assert run(entityq, "fails").code == 3


def test_a_forked_child_has_a_client_of_its_own(entityq: CommandLine, outbox: Outbox) -> None:
    finished = run(entityq, "forks")
    assert (finished.code, finished.stdout, finished.stderr) == (0, "child 0\n", "")
    stored = rows(outbox)
    assert len(stored) == 62
    keys = {"child": set[int](), "parent": set[int](), "thread": set[int]()}
    for row in stored:
        keys[str(row.envelope.primary_key).split("-")[0]].add(row.envelope.client)
    assert len(keys["child"]) == 1
    assert keys["parent"] == keys["thread"]
    assert not keys["child"] & keys["parent"]


def test_a_child_that_exits_leaves_its_parents_connections_alone(
    entityq: CommandLine, outbox: Outbox
) -> None:
    finished = run(entityq, "forks_and_exits")
    assert (finished.code, finished.stdout, finished.stderr) == (0, "child 0\n", "")
    parent = {row.envelope.client for row in rows(outbox) if row.envelope.primary_key != "child"}
    assert len(parent) == 1
