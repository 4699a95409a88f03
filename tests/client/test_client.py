"""The client against a real outbox, real streams, and runners that the tests play themselves."""

import asyncio
from typing import Any

import msgpack
import psycopg
import pytest

from entityq.codec import Limits
from entityq.envelope import decode_envelope
from entityq.errors import (
    Accepted,
    MailboxFull,
    PersistenceError,
    PrimaryKeyConflict,
    RunnerUnavailable,
    SendTimeout,
)
from tests.client.bank import Bank, Outbox, answer, published, rows, tell
from tests.support.losing_proxy import losing_proxy
from tests.support.servers import PrivateServers
from tests.support.waiting import eventually_async


async def test_what_is_sent_at_once_is_stored_in_the_order_of_sending(bank: Bank, outbox: Outbox) -> None:
    receipts = await asyncio.gather(
        *[bank.account("a").deposit.send(1, reference=reference) for reference in ("z", "m", "a")]
    )
    stored = rows(outbox)
    assert [row.envelope.primary_key for row in stored] == ["z", "m", "a"]
    assert [row.request_id for row in stored] == [receipt.request_id for receipt in receipts]
    assert not any(receipt.duplicate for receipt in receipts)


async def test_a_connection_that_ends_while_a_client_is_opened_is_named(
    postgres_url: str, redis_url: str, namespace: str
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        proxy.lose(b"synchronous_commit", at_once=True)
        with pytest.raises(PersistenceError, match="was lost while a client was opened"):
            async with bank.app.open_client():
                pass
        async with bank.app.open_client() as client:
            await client.send(bank.note())


async def test_timeouts_count_from_when_the_call_began(bank: Bank) -> None:
    """Its client was not open yet."""
    async with bank.app.open_client() as client:
        began = asyncio.get_running_loop().time() - 60
        for call in (client.send, client.ask):
            for message in (bank.note(), bank.read()):
                with pytest.raises(SendTimeout):
                    await call(message, began=began)


async def test_the_first_ask_is_not_overtaken_by_what_is_sent_next(bank: Bank, outbox: Outbox) -> None:
    account = bank.account("a")
    await account.deposit.send(1, reference="opened")
    asking = asyncio.create_task(account.deposit(1, reference="asked"))
    sending = asyncio.create_task(account.deposit.send(1, reference="sent"))
    await sending
    assert [row.envelope.primary_key for row in rows(outbox)] == ["opened", "asked", "sent"]
    asking.cancel()
    await asyncio.wait([asking])


async def test_thousands_at_once_keep_their_order_and_reach_the_streams_in_it(
    bank: Bank, outbox: Outbox, redis: Any
) -> None:
    receipts = await asyncio.gather(
        *[bank.account(f"acct-{n % 50}").deposit.send(n, reference=f"r-{n}") for n in range(3_000)]
    )
    stored = rows(outbox)
    assert [row.request_id for row in stored] == [receipt.request_id for receipt in receipts]

    async def all_there() -> bool:
        return sum(map(len, (await published(redis)).values())) == 3_000

    await eventually_async(all_there)
    by_seq = {row.seq: row for row in stored}
    for entries in (await published(redis)).values():
        assert [entry.n for entry in entries] == list(range(1, len(entries) + 1))
        assert [entry.seq for entry in entries] == sorted(entry.seq for entry in entries)
        assert len({entry.sender for entry in entries}) == 1
        assert len({by_seq[entry.seq].shard_id for entry in entries}) == 1


async def test_a_repeat_joins_the_first_request(bank: Bank, outbox: Outbox) -> None:
    first = await bank.account("a").deposit.send(1, reference="r")
    repeat = await bank.account("a").deposit.send(1, reference="r")
    assert repeat.duplicate
    assert repeat.request_id == first.request_id
    assert len(rows(outbox)) == 1


async def test_repeats_in_one_batch_join_the_first_of_them(bank: Bank, outbox: Outbox) -> None:
    receipts = await asyncio.gather(*[bank.account("a").deposit.send(1, reference="r") for _ in range(20)])
    assert [receipt.duplicate for receipt in receipts] == [False] + [True] * 19
    assert {receipt.request_id for receipt in receipts} == {rows(outbox)[0].request_id}


async def test_a_repeat_of_an_answered_request_has_its_reply(bank: Bank, outbox: Outbox) -> None:
    first = await bank.account("a").deposit.send(1, reference="r")
    answer(outbox, first.request_id, msgpack.packb(41))
    assert await (await bank.account("a").deposit.send(1, reference="r")) == 41
    assert await bank.account("a").deposit(1, reference="r") == 41


async def test_the_same_key_with_another_payload_is_refused(bank: Bank, outbox: Outbox) -> None:
    first = await bank.account("a").deposit.send(1, reference="r")
    with pytest.raises(PrimaryKeyConflict) as refused:
        await bank.account("a").deposit.send(2, reference="r")
    assert refused.value.request_id == first.request_id
    assert refused.value.accepted is Accepted.NO
    with pytest.raises(PrimaryKeyConflict):
        await bank.account("a").deposit(2, reference="r")
    assert len(rows(outbox)) == 1


async def test_keys_are_of_one_entity_and_one_message(bank: Bank, outbox: Outbox) -> None:
    await bank.account("a").deposit.send(1, reference="r")
    await bank.account("b").deposit.send(2, reference="r")
    await bank.account("a").note.options(primary_key="r").send("x")
    assert len(rows(outbox)) == 3


async def test_an_ask_hears_its_reply(bank: Bank, outbox: Outbox, redis: Any, namespace: str) -> None:
    asking = asyncio.ensure_future(bank.account("a").deposit.options(timeout=10)(1, reference="r"))
    row = await stored_row(outbox)
    assert row.envelope.deadline_ms is not None
    # Told, and not in the outbox: it was the channel that brought it.
    reply = answer(outbox, 0, msgpack.packb(7))
    await tell(redis, namespace, row.envelope.client, row.request_id, reply)
    assert await asyncio.wait_for(asking, 5) == 7


async def test_an_ask_that_hears_nothing_reads_the_outbox(bank: Bank, outbox: Outbox) -> None:
    asking = asyncio.ensure_future(bank.account("a").deposit.options(timeout=60)(1, reference="r"))
    answer(outbox, (await stored_row(outbox)).request_id, msgpack.packb(7))
    assert await asyncio.wait_for(asking, 30) == 7


async def test_a_receipt_can_be_awaited_again_and_by_several(bank: Bank, outbox: Outbox) -> None:
    receipt = await bank.account("a").deposit.send(1, reference="r")
    waiting = [asyncio.ensure_future(wait(receipt)) for _ in range(5)]
    waiting[0].cancel()
    answer(outbox, receipt.request_id, msgpack.packb(7))
    assert await asyncio.wait_for(asyncio.gather(*waiting[1:]), 5) == [7] * 4
    assert await receipt == 7


async def wait(receipt: Any) -> Any:
    return await receipt


async def test_nobody_answers(bank: Bank, outbox: Outbox) -> None:
    with pytest.raises(RunnerUnavailable, match="no live runner serves the shard group default") as refused:
        await bank.account("a").deposit.options(timeout=0.3)(1, reference="r")
    assert refused.value.accepted is Accepted.YES
    assert refused.value.request_id == rows(outbox)[0].request_id


async def test_status(bank: Bank, outbox: Outbox) -> None:
    assert (await bank.account("a").status()).state == "idle"
    receipt = await bank.account("a").deposit.send(1, reference="r")
    assert (await bank.account("a").status()).state == "processing"
    assert (await bank.account("b").status()).state == "idle"
    outbox.execute(
        "INSERT INTO entity (shard_id, type, entity_id, version, epoch, outcome)"
        " SELECT shard_id, type, entity_id, 1, 1, 0 FROM outbox"
    )
    answer(outbox, receipt.request_id, msgpack.packb(7))
    status = await bank.account("a").status()
    assert status.state == "complete"
    assert status.updated_at is not None


async def test_too_many_unanswered_requests_are_refused(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    bank = Bank(namespace, postgres_url, redis_url, max_pending=10)
    async with bank.app:
        sends = [
            bank.account("a").deposit.options(timeout=0.5).send(1, reference=f"r-{n}") for n in range(30)
        ]
        results = await asyncio.gather(*sends, return_exceptions=True)
        refused = [result for result in results if isinstance(result, MailboxFull)]
        assert len(refused) == 20
        assert refused[0].accepted is Accepted.NO
        assert refused[0].retryable
        assert len(rows(outbox)) == 10
        # Room again: a send waits for it.
        waiting = asyncio.ensure_future(bank.account("a").deposit.send(1, reference="later"))
        for row in rows(outbox):
            answer(outbox, row.request_id, b"\xc0")
        assert not (await asyncio.wait_for(waiting, 5)).duplicate


async def test_a_storm_of_cancellations_leaves_numbers_without_a_gap(
    bank: Bank, outbox: Outbox, redis: Any
) -> None:
    await bank.account("a").note.send("first")
    for round_ in range(10):
        sends = [asyncio.ensure_future(bank.account("a").note.send(f"{round_}-{n}")) for n in range(100)]
        for turn in range(round_ % 4):
            await asyncio.sleep(0.001 * turn)
        for send in sends[::2]:
            send.cancel()
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert not any(isinstance(result, Exception) for result in results)
    last = await bank.account("a").note.send("last")
    stored = rows(outbox)
    assert stored[-1].request_id == last.request_id

    async def all_there() -> bool:
        return sum(map(len, (await published(redis)).values())) == len(stored)

    await eventually_async(all_there)
    ((_, entries),) = (await published(redis)).items()
    assert [entry.seq for entry in entries] == [row.seq for row in stored]
    assert [entry.n for entry in entries] == list(range(1, len(stored) + 1))


async def test_a_flushed_redis_is_a_gap(bank: Bank, outbox: Outbox, redis: Any) -> None:
    await bank.account("a").note.send("1")
    await eventually_async(lambda: redis.keys("*stream*"))
    await redis.flushall()
    await bank.account("a").note.send("2")
    await eventually_async(lambda: redis.keys("*stream*"))
    ((_, entries),) = (await published(redis)).items()
    assert [entry.n for entry in entries] == [2]
    assert len(rows(outbox)) == 2


async def test_a_dead_redis_fails_no_send_and_delays_no_reply(
    private_servers: PrivateServers, namespace: str
) -> None:
    bank = Bank(namespace, private_servers.postgres_url, private_servers.redis_url)
    async with bank.app:
        await bank.account("a").note.send("1")
        private_servers.valkey.kill()
        async with asyncio.timeout(5):
            for n in range(20):
                await bank.account("a").note.send(f"{n}")
        private_servers.valkey.start()


async def test_it_starts_without_redis(private_servers: PrivateServers, namespace: str) -> None:
    private_servers.valkey.kill()
    bank = Bank(namespace, private_servers.postgres_url, private_servers.redis_url)
    async with bank.app:
        await bank.account("a").note.send("1")
        with pytest.raises(SendTimeout) as refused:
            await bank.account("a").read.options(timeout=0.5)()
        assert refused.value.accepted is Accepted.NO
    private_servers.valkey.start()


async def test_it_waits_for_a_postgres_that_restarts(private_servers: PrivateServers, namespace: str) -> None:
    bank = Bank(namespace, private_servers.postgres_url, private_servers.redis_url)
    async with bank.app:
        await bank.account("a").note.send("1")
        asking = asyncio.ensure_future(bank.account("a").deposit.options(timeout=20)(1, reference="r"))
        await asyncio.to_thread(private_servers.postgres.restart)
        receipt = await bank.account("a").deposit.send(1, reference="r")
        answer_elsewhere(private_servers.postgres_url, receipt.request_id, msgpack.packb(7))
        assert await asyncio.wait_for(asking, 10) == 7


async def test_a_postgres_that_stays_away_is_an_error_that_says_so(
    private_servers: PrivateServers, namespace: str
) -> None:
    bank = Bank(namespace, private_servers.postgres_url, private_servers.redis_url)
    async with bank.app:
        await bank.account("a").note.send("1")
        await asyncio.to_thread(private_servers.postgres.stop)
        with pytest.raises((SendTimeout, PersistenceError), match="Cannot connect to Postgres") as refused:
            await bank.account("a").note.options(timeout=0.5).send("2")
        assert refused.value.accepted is Accepted.NO
        with pytest.raises(PersistenceError, match="could not be stored: Cannot connect") as refused:
            await bank.account("a").note.send("2")
        assert refused.value.accepted is Accepted.NO
        await asyncio.to_thread(private_servers.postgres.start)
        await bank.account("a").note.send("3")


async def test_who_gave_up_before_it_was_sent_is_not_stored_later(
    private_servers: PrivateServers, namespace: str
) -> None:
    bank = Bank(namespace, private_servers.postgres_url, private_servers.redis_url)
    async with bank.app:
        await bank.account("a").note.send("1")
        await asyncio.to_thread(private_servers.postgres.stop)
        abandoned = asyncio.ensure_future(bank.account("a").note.send("2"))
        kept = asyncio.ensure_future(bank.account("a").note.send("3"))
        await asyncio.wait([abandoned], timeout=0.1)
        abandoned.cancel()
        await asyncio.to_thread(private_servers.postgres.start)
        receipt = await kept
        with psycopg.connect(private_servers.postgres_url, options="-c search_path=entityq") as outbox:
            stored = rows(outbox)
    assert len(stored) == 2
    assert stored[1].request_id == receipt.request_id


def answer_elsewhere(postgres_url: str, request_id: int, value: bytes) -> None:
    with psycopg.connect(postgres_url, autocommit=True, options="-c search_path=entityq") as outbox:
        answer(outbox, request_id, value)


async def stored_row(outbox: Outbox) -> Any:
    async def one() -> Any:
        return next(iter(rows(outbox)), None)

    return await eventually_async(one)


async def test_a_volatile_ask_is_told_and_stored_nowhere(
    bank: Bank, outbox: Outbox, redis: Any, namespace: str
) -> None:
    asking = asyncio.ensure_future(bank.account("a").read.options(timeout=5)())

    async def entry() -> Any:
        return next((entries[0] for entries in (await published(redis)).values()), None)

    volatile = await eventually_async(entry)
    assert not volatile.persisted
    envelope = decode_envelope(volatile.envelope, Limits())
    reply = answer(outbox, 0, msgpack.packb(9))
    await tell(redis, namespace, envelope.client, envelope.request_id, reply)
    assert await asking == 9
    assert rows(outbox) == []


async def test_a_volatile_ask_that_nobody_answers_is_not_accepted(bank: Bank) -> None:
    with pytest.raises(RunnerUnavailable) as refused:
        await bank.account("a").read.options(timeout=0.3)()
    assert refused.value.accepted is Accepted.NO


async def test_a_closed_client_says_so(bank: Bank) -> None:
    async with bank.app.open_client() as client:
        closed = client
    with pytest.raises(PersistenceError, match="closed"):
        await closed.send(bank.note())
