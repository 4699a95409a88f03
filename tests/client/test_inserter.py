"""Faults in the middle of an insert: locks of others, lost answers, poison, collisions."""

import asyncio
from typing import Any

import pytest

from entityq.address import Address, entity_hash, signed64
from entityq.client.client import Client
from entityq.client.inserter import LOCK_TIMEOUT
from entityq.errors import Accepted, EntityQError, MalformedMessage, PersistenceError, SendTimeout
from entityq.primary_key import key_digest
from entityq.receipt import Receipt
from entityq.snowflake import Snowflakes
from tests.client.bank import Bank, Outbox, published, rows
from tests.support.losing_proxy import losing_proxy
from tests.support.waiting import eventually_async

INSERT_MARKER = b"WITH sent AS"
CONFLICTS_MARKER = b"AS asked (request_id)"


def insert_by_hand(session: Outbox, namespace: str, reference: str, request_id: int = 1) -> None:
    """A request to Account/a with this key; the caller decides about the transaction."""
    address = Address("Account", "a")
    session.execute(
        "INSERT INTO outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message, key_digest,"
        " payload_hash, envelope) SELECT %s, first_shard, nextval('outbox_seq'), %s, 'Account', 'a', 'deposit',"
        " %s, %s, '' FROM shard_group",
        [
            request_id,
            signed64(entity_hash("a")),
            key_digest(namespace, address, "deposit", reference),
            bytes(32),
        ],
    )


# ----- keys that somebody else is inserting


async def test_an_uncommitted_first_holds_up_nobody_else_and_is_inserted_after_its_rollback(
    bank: Bank, outbox: Outbox, stranger: Outbox, namespace: str
) -> None:
    await bank.account("a").deposit.send(1, reference="before")
    insert_by_hand(stranger, namespace, "held")
    held = asyncio.ensure_future(bank.account("a").deposit.send(1, reference="held"))
    async with asyncio.timeout(5):
        others = [bank.account("a").deposit.send(1, reference=f"r-{n}") for n in range(200)]
        receipts = await asyncio.gather(*others)
        assert not held.done()
        again = asyncio.ensure_future(bank.account("a").deposit.send(1, reference="held"))
        await bank.account("a").deposit.send(1, reference="after")
        stranger.rollback()
        first, second = await asyncio.gather(held, again)
    assert not first.duplicate
    assert second.duplicate
    assert second.request_id == first.request_id
    stored = [row.request_id for row in rows(outbox)]
    assert [request_id for request_id in stored if request_id in {r.request_id for r in receipts}] == [
        receipt.request_id for receipt in receipts
    ]
    assert len(stored) == 203


async def test_a_key_that_is_known_to_be_held_costs_the_next_batches_nothing(
    bank: Bank, stranger: Outbox, namespace: str
) -> None:
    await bank.account("a").deposit.send(1, reference="before")
    insert_by_hand(stranger, namespace, "held")
    held = [asyncio.ensure_future(bank.account("a").deposit.send(1, reference="held"))]
    await bank.account("a").deposit.send(1, reference="meets it")
    started = asyncio.get_running_loop().time()
    for n in range(10):
        held.append(asyncio.ensure_future(bank.account("a").deposit.send(1, reference="held")))
        await bank.account("a").deposit.send(1, reference=f"r-{n}")
    # Each of the ten would wait for the lock timeout.
    assert asyncio.get_running_loop().time() - started < 10 * LOCK_TIMEOUT * 0.7
    stranger.rollback()
    assert len({receipt.request_id for receipt in await asyncio.gather(*held)}) == 1


async def test_an_uncommitted_first_is_joined_after_its_commit(
    bank: Bank, outbox: Outbox, stranger: Outbox, namespace: str
) -> None:
    await bank.account("a").deposit.send(1, reference="before")
    insert_by_hand(stranger, namespace, "held", request_id=4711)
    joining = asyncio.ensure_future(bank.account("a").deposit.send(1, reference="held"))
    await asyncio.wait_for(bank.account("a").deposit.send(1, reference="after"), 5)
    stranger.commit()
    # By hand it has another payload's hash.
    with pytest.raises(EntityQError, match="another payload") as refused:
        await asyncio.wait_for(joining, 5)
    assert refused.value.request_id == 4711


async def test_who_waits_for_a_key_in_vain_is_not_accepted(
    bank: Bank, outbox: Outbox, stranger: Outbox, namespace: str
) -> None:
    await bank.account("a").deposit.send(1, reference="before")
    insert_by_hand(stranger, namespace, "held")
    with pytest.raises(SendTimeout, match="did not commit in time") as refused:
        await bank.account("a").deposit.options(timeout=0.6).send(1, reference="held")
    assert refused.value.accepted is Accepted.NO
    stranger.rollback()
    assert len(rows(outbox)) == 1
    assert not (await bank.account("a").deposit.send(1, reference="held")).duplicate


async def test_a_held_request_takes_its_number_when_it_is_stored(
    bank: Bank, stranger: Outbox, namespace: str, redis: Any
) -> None:
    await bank.account("a").deposit.send(1, reference="1")
    insert_by_hand(stranger, namespace, "held")
    held = asyncio.ensure_future(bank.account("a").deposit.send(1, reference="held"))
    await bank.account("a").deposit.send(1, reference="2")
    stranger.rollback()
    await held
    await bank.account("a").deposit.send(1, reference="3")
    entries = await only_stream(redis, 4)
    assert [entry.n for entry in entries] == [1, 2, 3, 4]


# ----- locks on the table


async def test_a_locked_table_is_waited_for_as_a_whole(bank: Bank, outbox: Outbox, stranger: Outbox) -> None:
    deposit = bank.account("a").deposit
    await deposit.send(1, reference="before")
    stranger.execute("LOCK TABLE outbox IN SHARE MODE")
    sends = [asyncio.ensure_future(deposit.send(1, reference=f"r-{n}")) for n in range(300)]
    await asyncio.wait(sends, timeout=0.5)
    assert not any(send.done() for send in sends)
    stranger.rollback()
    receipts = await asyncio.wait_for(asyncio.gather(*sends), 5)
    # In order: no row was taken out to wait alone.
    assert [row.request_id for row in rows(outbox)[1:]] == [receipt.request_id for receipt in receipts]


# ----- answers that get lost


async def test_a_lost_answer_is_asked_for_again_with_the_same_ids(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox, redis: Any
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        async with bank.app:
            await bank.account("a").note.send("before")
            proxy.lose(b"lost-1")
            sends = [bank.account("a").note.send(f"lost-{n}") for n in range(5)]
            receipts = await asyncio.wait_for(asyncio.gather(*sends), 5)
            assert proxy.lost.is_set()
            await bank.account("a").note.send("after")
    stored = rows(outbox)
    assert [row.request_id for row in stored[1:-1]] == [receipt.request_id for receipt in receipts]
    assert not any(receipt.duplicate for receipt in receipts)
    # It was found out what became of them: no number was burned.
    entries = await only_stream(redis, 7)
    assert [(entry.n, entry.seq) for entry in entries] == [(n + 1, row.seq) for n, row in enumerate(stored)]


async def test_a_lost_answer_that_nobody_gives_again_is_unknown_and_burns_a_number(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox, redis: Any
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        async with bank.app:
            await bank.account("a").note.send("before")
            proxy.lose(b"lost-1", then_refuse=True)
            with pytest.raises(PersistenceError, match="could not be stored") as refused:
                await bank.account("a").note.send("lost-1")
            assert refused.value.accepted is Accepted.UNKNOWN
            assert refused.value.request_id == rows(outbox)[1].request_id
            proxy.heal()
            await bank.account("a").note.send("after")
    before, lost, after = rows(outbox)
    entries = await only_stream(redis, 2)
    assert [(entry.n, entry.seq) for entry in entries] == [(1, before.seq), (3, after.seq)]
    assert lost.seq == after.seq - 1


async def test_what_is_stored_is_accepted_although_its_batch_is_still_in_trouble(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url, send_timeout=1.0)
        async with bank.app:
            await bank.account("a").deposit.send(1, reference="known")
            # After the insert, and before it is known what the repeat has met.
            proxy.lose(CONFLICTS_MARKER, then_refuse=True)
            stored, _ = await asyncio.gather(
                bank.account("a").note.send("stored"),
                bank.account("a").deposit.send(1, reference="known"),
                return_exceptions=True,
            )
            proxy.heal()
    assert isinstance(stored, Receipt)
    assert stored.request_id == rows(outbox)[1].request_id


async def test_a_lost_batch_waits_for_its_own_first_try(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox, redis: Any
) -> None:
    # The network is cut, and the old session is still at work on the statement.
    outbox.execute(
        "CREATE FUNCTION slowly() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'"
        " LANGUAGE plpgsql"
    )
    outbox.execute("CREATE TRIGGER slow AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION slowly()")
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        async with bank.app:
            await bank.account("a").deposit.send(1, reference="before")
            proxy.lose(b"lost-1", at_once=True)
            sends = [bank.account("a").deposit.send(1, reference=f"lost-{n}") for n in range(20)]
            receipts = await asyncio.wait_for(asyncio.gather(*sends), 8)
    stored = rows(outbox)
    assert [row.request_id for row in stored[1:]] == [receipt.request_id for receipt in receipts]
    entries = await only_stream(redis, 21)
    assert [(entry.n, entry.seq) for entry in entries] == [(n + 1, row.seq) for n, row in enumerate(stored)]


async def test_a_terminated_session_costs_a_retry(bank: Bank, outbox: Outbox, stranger: Outbox) -> None:
    await bank.account("a").note.send("before")
    stranger.execute("LOCK TABLE outbox IN SHARE MODE")
    sending = asyncio.ensure_future(bank.account("a").note.send("1"))

    async def terminated() -> bool:
        return bool(
            outbox.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchall()
        )

    await eventually_async(terminated)
    stranger.rollback()
    receipt = await asyncio.wait_for(sending, 5)
    assert [row.request_id for row in rows(outbox)][1:] == [receipt.request_id]


async def test_an_idle_session_that_was_ended_is_no_lost_answer(
    bank: Bank, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    await bank.account("a").note.send("before")
    outbox.execute(
        # The second argument: it returns when the session has ended.
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'entityq%%'",
        [],
    )
    await bank.account("a").note.send("after")
    assert len(rows(outbox)) == 2
    assert "insert_failed" not in caplog.text


# ----- poison and collisions


async def test_a_row_that_cannot_be_stored_fails_alone(bank: Bank, outbox: Outbox) -> None:
    outbox.execute("ALTER TABLE outbox ADD CONSTRAINT poison CHECK (entity_id <> 'poison')")
    accounts = [bank.account("poison" if n == 17 else "a") for n in range(50)]
    sends = [account.note.send(str(n)) for n, account in enumerate(accounts)]
    results: list[Any] = await asyncio.gather(*sends, return_exceptions=True)
    poisoned = results.pop(17)
    assert isinstance(poisoned, MalformedMessage)
    assert poisoned.accepted is Accepted.NO
    assert [row.request_id for row in rows(outbox)] == [receipt.request_id for receipt in results]


async def test_an_id_that_is_taken_is_replaced(bank: Bank, outbox: Outbox, namespace: str) -> None:
    # Two processes with one machine number and, here, one clock that stands still.
    twins = [Snowflakes(600, clock=lambda: 1_800_000_000.0) for _ in range(2)]
    clients = [await open_client(bank, ids) for ids in twins]
    try:
        receipts = [await client.send(bank.note()) for client in clients for _ in range(3)]
    finally:
        for client in clients:
            await client.close()
    assert len({receipt.request_id for receipt in receipts}) == 6
    assert {row.request_id for row in rows(outbox)} == {receipt.request_id for receipt in receipts}
    assert all(row.envelope.request_id == row.request_id for row in rows(outbox))
    assert twins[1].machine != 600


async def open_client(bank: Bank, ids: Snowflakes) -> Client:
    servers = bank.app.settings.servers()
    assert servers is not None
    return await Client.open(bank.app.settings, servers, bank.app.definitions, ids=ids)


async def only_stream(redis: Any, count: int) -> list[Any]:
    async def complete() -> list[Any]:
        ((_, entries),) = (await published(redis)).items()
        return entries if len(entries) == count else []

    return await eventually_async(complete)
