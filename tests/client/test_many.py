"""Many requests as one: an outcome for each, in order, and one transaction for all."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from entityq import Accepted, EntityQ, MailboxFull, MalformedMessage, PayloadTooLarge, PersistenceError
from entityq.client import many
from entityq.client.encoding import Encoder
from entityq.client.many import MAX_MANY, MAX_STATEMENT, Many, OrderedInserts, parts
from entityq.client.send import Send
from entityq.errors import EntityQError
from entityq.snowflake import Snowflakes
from tests.client.bank import Account, Bank, Outbox, answer, published, rows
from tests.client.test_inserter import CONFLICTS_MARKER, insert_by_hand
from tests.support.losing_proxy import losing_proxy
from tests.support.waiting import eventually_async


def transactions(outbox: Outbox) -> int:
    """How many the rows of the outbox were written by."""
    (count,) = outbox.execute("SELECT count(DISTINCT xmin::text) FROM outbox").fetchone() or (0,)
    return int(count)


# ----- outcomes


async def test_each_has_its_outcome_in_order(bank: Bank, outbox: Outbox) -> None:
    account = bank.account("a")
    first = await account.deposit.send(1, reference="known")
    sent = await bank.app.send_many(
        [
            account.deposit.request(2, reference="new"),
            account.deposit.request(1, reference="known"),
            account.deposit.request(9, reference="known"),
            account.deposit.request(2, reference="new"),
            account.deposit.request(3, reference="new"),
            account.note.request("x"),
        ]
    )
    assert [each.status for each in sent] == [
        "accepted",
        "duplicate",
        "conflict",
        "duplicate",
        "conflict",
        "accepted",
    ]
    new, known, conflict, again, conflict_in_batch, note = sent
    assert known.receipt.request_id == first.request_id
    assert again.receipt.request_id == new.receipt.request_id
    for refused, met in ((conflict, first), (conflict_in_batch, new.receipt)):
        assert refused.error is not None
        assert refused.error.request_id == met.request_id
        with pytest.raises(EntityQError, match="another payload before"):
            _ = refused.receipt
    assert [row.request_id for row in rows(outbox)] == [
        first.request_id,
        new.receipt.request_id,
        note.receipt.request_id,
    ]
    answer(outbox, new.receipt.request_id, msgpack.packb(7))
    assert await new.receipt == await again.receipt == 7


async def test_nothing_is_sent_for_nothing(bank: Bank) -> None:
    assert await bank.app.send_many([]) == []


async def test_a_volatile_message_is_refused_and_so_are_those_beside_it(bank: Bank) -> None:
    requests: list[Any] = [bank.account("a").note.request("x"), bank.account("a").read.request()]
    with pytest.raises(MalformedMessage, match="read of Account is volatile"):
        await bank.app.send_many(requests)


async def test_a_request_of_another_app_is_refused(bank: Bank) -> None:
    other = EntityQ("other", settings=bank.app.settings)
    with pytest.raises(MalformedMessage, match="of another app"):
        await other.send_many([bank.account("a").note.request("x")])


async def test_too_many_are_refused(bank: Bank, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [bank.account("a").note.request("x")] * (MAX_MANY + 1)
    with pytest.raises(PayloadTooLarge, match="10,001 requests"):
        await bank.app.send_many(requests)
    monkeypatch.setattr(many, "MAX_MANY_BYTES", 10_000)
    with pytest.raises(PayloadTooLarge, match="Send it in parts"):
        await bank.app.send_many([bank.account("a").note.request("x" * 10_000)])
    assert rows(outbox) == []


# ----- one transaction, in order


async def test_more_than_a_statement_carries_is_one_transaction_in_order(
    bank: Bank, outbox: Outbox, redis: Any
) -> None:
    count = 2 * MAX_STATEMENT + 1
    sent = await bank.app.send_many([bank.account("a").note.request(str(n)) for n in range(count)])
    stored = rows(outbox)
    assert [row.request_id for row in stored] == [each.receipt.request_id for each in sent]
    assert transactions(outbox) == 1

    async def all_published() -> bool:
        return sum(map(len, (await published(redis)).values())) == count

    await eventually_async(all_published)
    (stream,) = (await published(redis)).values()
    assert [(entry.n, entry.seq) for entry in stream] == [(n + 1, row.seq) for n, row in enumerate(stored)]


async def test_it_keeps_its_place_among_the_sends_around_it(bank: Bank, outbox: Outbox) -> None:
    account = bank.account("a")
    await account.note.send("open")
    before = [asyncio.ensure_future(account.note.send(f"before {n}")) for n in range(3)]
    await asyncio.sleep(0)
    batch = asyncio.ensure_future(bank.app.send_many([account.note.request(str(n)) for n in range(3)]))
    await asyncio.sleep(0)
    after = [asyncio.ensure_future(account.note.send(f"after {n}")) for n in range(3)]
    receipts = [*await asyncio.gather(*before), *(each.receipt for each in await batch)]
    receipts += await asyncio.gather(*after)
    assert [row.request_id for row in rows(outbox)[1:]] == [receipt.request_id for receipt in receipts]


async def test_single_sends_around_a_batch_are_inserted_in_between() -> None:
    flushed: list[object] = []

    async def single(sends: Any) -> Any:
        flushed.append(list(sends))
        return list(sends)

    async def as_one(batch: Any) -> Any:
        flushed.append(batch)
        return batch

    a, b, c = (_send(bytes(1)) for _ in range(3))
    first, second = Many([], 0.0), Many([], 0.0)
    items: list[Send | Many] = [a, b, first, second, c]
    assert await OrderedInserts(single, as_one).flush(items) == items
    assert flushed == [[a, b], first, second, [c]]


def test_parts_are_bounded_by_count_and_by_size() -> None:
    small = [_send(b"x") for _ in range(MAX_STATEMENT + 1)]
    assert [len(part) for part in parts(small)] == [MAX_STATEMENT, 1]
    large = [_send(bytes(many.MAX_STATEMENT_BYTES // 2)) for _ in range(5)]
    assert [len(part) for part in parts(large)] == [2, 2, 1]
    assert [send for part in parts(large) for send in part] == large


def _send(envelope: bytes) -> Send:
    request: Any = type("Request", (), {"envelope": envelope})()
    call: Any = None
    return Send(call, request, 0.0)


# ----- all or nothing


async def test_a_closed_group_keeps_out_the_rest_too(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    bank = Bank(namespace, postgres_url, redis_url, send_timeout=1.0)
    vault: type[Account] = bank.app.entity(type="Vault", shard_group="vaults")(type("Vault", (Account,), {}))
    requests = [bank.account("a").note.request("x"), vault.at("v").note.request("y")]
    async with bank.app:
        await bank.account("a").note.send("before")
        outbox.execute("UPDATE shard_group SET open = false WHERE name = 'vaults'")
        with pytest.raises(EntityQError, match="vaults is closed") as refused:
            await bank.app.send_many(requests)
        assert refused.value.accepted is Accepted.NO
        assert len(rows(outbox)) == 1
        waiting = asyncio.ensure_future(bank.app.send_many(requests))
        await bank.account("a").note.send("others go on")
        outbox.execute("UPDATE shard_group SET open = true")
        assert [each.status for each in await waiting] == ["accepted", "accepted"]


async def test_without_room_for_all_none_is_stored(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    bank = Bank(namespace, postgres_url, redis_url, max_pending=10, send_timeout=0.5)
    async with bank.app:
        requests = [bank.account("a").note.request(str(n)) for n in range(11)]
        with pytest.raises(MailboxFull, match="A batch of 11 requests does not fit"):
            await bank.app.send_many(requests)
        assert rows(outbox) == []


async def test_a_row_that_cannot_be_stored_keeps_out_the_rest_too(bank: Bank, outbox: Outbox) -> None:
    await bank.account("a").note.send("before")
    outbox.execute("ALTER TABLE outbox ADD CHECK (entity_id <> 'poison')")
    with pytest.raises(MalformedMessage, match="A batch of 2 requests cannot be stored") as refused:
        await bank.app.send_many(
            [bank.account("a").note.request("x"), bank.account("poison").note.request("y")]
        )
    assert refused.value.accepted is Accepted.NO
    assert len(rows(outbox)) == 1
    await bank.account("a").note.send("after")


async def test_a_key_in_somebody_elses_transaction_is_waited_for_and_others_go_on(
    bank: Bank, outbox: Outbox, stranger: Outbox, namespace: str
) -> None:
    account = bank.account("a")
    await account.note.send("before")
    insert_by_hand(stranger, namespace, "held")
    requests = [account.note.request("x"), account.deposit.request(1, reference="held")]
    waiting = asyncio.ensure_future(bank.app.send_many(requests))
    for n in range(10):
        await account.note.send(f"others {n}")
    assert not waiting.done()
    stranger.rollback()
    assert [each.status for each in await waiting] == ["accepted", "accepted"]


async def test_a_key_that_stays_in_somebody_elses_transaction_keeps_out_the_rest_too(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox, stranger: Outbox
) -> None:
    bank = Bank(namespace, postgres_url, redis_url, send_timeout=1.0)
    async with bank.app:
        account = bank.account("a")
        await account.note.send("before")
        insert_by_hand(stranger, namespace, "held")
        with pytest.raises(EntityQError, match="has not committed") as refused:
            await bank.app.send_many(
                [account.note.request("x"), account.deposit.request(1, reference="held")]
            )
    assert refused.value.accepted is Accepted.NO
    assert len(rows(outbox)) == 1


# ----- lost answers


async def test_a_lost_commit_is_settled_by_a_repeat_with_the_same_ids(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox, redis: Any
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        async with bank.app:
            account = bank.account("a")
            await account.note.send("before")
            proxy.lose(b"COMMIT")
            sent = await bank.app.send_many(
                [
                    account.note.request("x"),
                    account.deposit.request(1, reference="r"),
                    account.deposit.request(1, reference="r"),
                ]
            )
            assert proxy.lost.is_set()
            await account.note.send("after")
    assert [each.status for each in sent] == ["accepted", "accepted", "duplicate"]
    stored = rows(outbox)
    assert [row.request_id for row in stored[1:-1]] == [each.receipt.request_id for each in sent[:2]]
    # It was found out what became of them: no number was burned.
    (stream,) = (await published(redis)).values()
    assert [(entry.n, entry.seq) for entry in stream] == [(n + 1, row.seq) for n, row in enumerate(stored)]


async def test_a_lost_commit_that_nobody_can_ask_about_is_unknown_and_burns_its_numbers(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox, redis: Any
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url, send_timeout=1.0)
        async with bank.app:
            account = bank.account("a")
            await account.note.send("before")
            proxy.lose(b"COMMIT", then_refuse=True)
            with pytest.raises(PersistenceError, match="could not be stored") as refused:
                await bank.app.send_many([account.note.request("x"), account.note.request("y")])
            assert refused.value.accepted is Accepted.UNKNOWN
            proxy.heal()
            await account.note.send("after")
    before, _, _, after = rows(outbox)
    (stream,) = (await published(redis)).values()
    assert [(entry.n, entry.seq) for entry in stream] == [(1, before.seq), (4, after.seq)]


async def test_what_is_lost_before_the_commit_is_stored_once(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url)
        async with bank.app:
            account = bank.account("a")
            await account.note.send("before")
            proxy.lose(b"lost-1", at_once=True)
            sent = await bank.app.send_many([account.note.request("lost-1"), account.note.request("y")])
            assert proxy.lost.is_set()
    assert [row.request_id for row in rows(outbox)[1:]] == [each.receipt.request_id for each in sent]


async def test_what_is_stored_is_accepted_although_what_was_sent_with_it_is_in_trouble(
    postgres_url: str, redis_url: str, namespace: str, outbox: Outbox
) -> None:
    async with losing_proxy(postgres_url) as proxy:
        bank = Bank(namespace, proxy.url, redis_url, send_timeout=1.0)
        async with bank.app:
            account = bank.account("a")
            await account.deposit.send(1, reference="known")
            # After the batch is committed, and before it is known what the repeat has met.
            proxy.lose(CONFLICTS_MARKER, then_refuse=True)
            batch = asyncio.ensure_future(bank.app.send_many([account.note.request("x")]))
            repeat = asyncio.ensure_future(account.deposit.send(1, reference="known"))
            await asyncio.wait([batch, repeat])
            proxy.heal()
    assert isinstance(repeat.exception(), EntityQError)
    assert [each.receipt.request_id for each in batch.result()] == [rows(outbox)[1].request_id]


# ----- sync code


@pytest.fixture
def sync_bank(postgres_url: str, redis_url: str, namespace: str) -> Iterator[Bank]:
    bank = Bank(namespace, postgres_url, redis_url)
    yield bank
    bank.app.close_blocking()


def test_sync_code_has_delay_many(sync_bank: Bank, outbox: Outbox) -> None:
    account = sync_bank.account("a")
    sent = sync_bank.app.delay_many(
        [account.deposit.request(1, reference="r"), account.deposit.request(1, reference="r")]
    )
    assert [each.status for each in sent] == ["accepted", "duplicate"]
    answer(outbox, sent[0].receipt.request_id, msgpack.packb(7))
    assert sent[1].receipt.get(timeout=5) == 7


async def test_a_collision_of_ids_gets_another_id(bank: Bank, outbox: Outbox, namespace: str) -> None:
    account = bank.account("a")
    await account.note.send("before")
    taken = Snowflakes(5).new()
    insert_by_hand(outbox, namespace, "other", taken)
    original = Encoder.request
    seen: list[int] = []

    def colliding(self: Encoder, call: Any, timeout: float | None = None) -> Any:
        request = original(self, call, timeout)
        if not seen:
            seen.append(request.request_id)
            object.__setattr__(request, "request_id", taken)
        return request

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "request", colliding)
        (sent,) = await bank.app.send_many([account.note.request("x")])
    assert sent.status == "accepted"
    assert sent.receipt.request_id != taken
