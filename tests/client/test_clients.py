import asyncio
import gc
import weakref
from dataclasses import replace

import pytest

from entityq.client.client import Client
from entityq.client.clients import Clients
from entityq.errors import Accepted, PersistenceError, SendTimeout, UnsafeConfiguration
from entityq.retry import TRANSIENT, RetryPolicy
from tests.client.bank import Bank, Outbox, rows
from tests.support.losing_proxy import losing_proxy

# In the statement that reads the facts of the cluster: the last but a few of an opening.
FACTS = b"cluster_id"


async def test_the_first_users_of_a_loop_share_one_client(bank: Bank, outbox: Outbox) -> None:
    await asyncio.gather(*[bank.account("a").note.send(str(n)) for n in range(20)])
    assert len({row.envelope.client for row in rows(outbox)}) == 1


async def test_after_close_the_next_use_opens_another_one(bank: Bank, outbox: Outbox) -> None:
    await bank.account("a").note.send("1")
    await bank.app.close()
    await bank.account("a").note.send("2")
    assert len({row.envelope.client for row in rows(outbox)}) == 2


async def test_who_gives_up_during_the_opening_does_not_take_it_from_others(
    bank: Bank, outbox: Outbox
) -> None:
    sends = [asyncio.ensure_future(bank.account("a").note.send(str(n))) for n in range(3)]
    await asyncio.sleep(0)
    sends[0].cancel()
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert len(rows(outbox)) == 2


async def test_a_failed_opening_is_tried_again(
    empty_postgres_url: str, redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By the next caller: what a person must change is told at once."""
    bank = Bank(namespace, empty_postgres_url, redis_url)
    for _ in range(2):
        with pytest.raises(UnsafeConfiguration, match="entityq migrate"):
            await bank.account("a").note.send("1")
    await bank.app.close()
    assert "tried again" not in caplog.text


def test_each_loop_has_its_own_and_leaves_nothing_behind(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    bank = Bank(namespace, postgres_url, redis_url)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def send_and_forget_to_close() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await bank.account("a").note.send("1")

    for _ in range(3):
        asyncio.run(send_and_forget_to_close())
    gc.collect()
    # The last one stays until the next is opened.
    assert [loop() for loop in loops[:2]] == [None, None]
    assert len({row.envelope.client for row in rows(outbox)}) == 3


# ----- the connection is lost while the client is opened


async def test_an_opening_that_loses_its_connection_is_tried_again_and_keeps_the_order(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        async with bank.app:
            proxy.lose(FACTS)
            await asyncio.gather(*[bank.account("a").note.send(str(n)) for n in range(20)])
            assert proxy.lost.is_set()
    payloads = [row.envelope.payload for row in rows(outbox)]
    assert len(payloads) == 20
    assert payloads == sorted(payloads, key=lambda payload: (len(payload), payload))


async def test_so_is_that_of_sync_code(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        proxy.lose(FACTS)
        await asyncio.to_thread(bank.account("a").note.delay, "1")
        assert proxy.lost.is_set()
        await asyncio.to_thread(bank.app.close_blocking)
    assert len(rows(outbox)) == 1


async def test_a_call_waits_for_an_opening_no_longer_than_it_may_and_nothing_of_it_is_stored(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        async with bank.app:
            proxy.lose(FACTS, then_refuse=True)
            waiting = asyncio.create_task(bank.account("a").note.send("patient"), name="patient")
            await asyncio.wait_for(proxy.lost.wait(), 5)
            for late in (
                bank.account("a").note.options(timeout=0.3).send("late"),
                bank.account("a").read.options(timeout=0.1)(),
            ):
                with pytest.raises(SendTimeout, match=r"client is not open yet: .*Postgres") as refused:
                    await late
                assert refused.value.accepted is Accepted.NO
            proxy.heal()
            await waiting
    assert [b"patient" in row.envelope.payload for row in rows(outbox)] == [True]


async def test_it_is_given_up_when_the_tries_are_used_up(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, replace(TRANSIENT, total=0.2))
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        async with bank.app:
            proxy.lose(FACTS, then_refuse=True)
            with pytest.raises(PersistenceError, match="Cannot connect") as refused:
                await bank.account("a").note.send("1")
            assert refused.value.accepted is Accepted.NO
            proxy.heal()
            await bank.account("a").note.send("2")
    assert len(rows(outbox)) == 1


async def test_it_is_given_up_when_the_app_is_closed(bank: Bank) -> None:
    tries = 0
    tried = asyncio.Event()

    async def open_client() -> Client:
        nonlocal tries
        tries += 1
        tried.set()
        raise PersistenceError("Postgres is away")

    settings = bank.app.settings
    clients = Clients(open_client, lambda: settings)
    sending = asyncio.create_task(clients.send(bank.note()), name="sending")
    await tried.wait()
    before = tries
    await clients.close()
    with pytest.raises(PersistenceError, match="is away"):
        await sending
    assert tries <= before + 1


def shorten(monkeypatch: pytest.MonkeyPatch, policy: RetryPolicy) -> None:
    monkeypatch.setattr("entityq.client.opening.POLICY", policy)
    monkeypatch.setattr("entityq.client.clients.POLICY", policy)


async def test_who_comes_while_others_try_has_tries_of_its_own_afterwards(
    bank: Bank, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(TRANSIENT, total=0.6)
    shorten(monkeypatch, policy)

    async def open_client() -> Client:
        if not first.done():
            raise PersistenceError("Postgres is away")
        return await Client.open(settings, servers, bank.app.definitions)

    settings = bank.app.settings
    clients = Clients(open_client, lambda: settings)
    with bank.app.start_servers() as servers:
        first = asyncio.create_task(clients.send(bank.note("first")), name="first")
        await asyncio.wait([first], timeout=policy.total / 2)
        second = asyncio.create_task(clients.send(bank.note("second")), name="second")
        with pytest.raises(PersistenceError, match="is away"):
            await first
        await second
        await clients.close()
    assert [b"second" in row.envelope.payload for row in rows(outbox)] == [True]
