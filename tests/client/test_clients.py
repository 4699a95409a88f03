import asyncio
import gc
import weakref

import pytest

from entityq.errors import UnsafeConfiguration
from tests.client.bank import Bank, Outbox, rows


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
    empty_postgres_url: str, redis_url: str, namespace: str
) -> None:
    bank = Bank(namespace, empty_postgres_url, redis_url)
    for _ in range(2):
        with pytest.raises(UnsafeConfiguration, match="entityq migrate"):
            await bank.account("a").note.send("1")
    await bank.app.close()


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
