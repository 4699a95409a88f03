"""P6 as a sender meets it: a typed error or a wait, and nothing is silently dropped."""

import asyncio

import pytest

from entityq import EntityDefect, MailboxFull, PayloadTooLarge, SendTimeout
from entityq.receipt import Receipt
from tests.promises.cluster import Cluster, Sending, most_queued
from tests.promises.journals import GATES, RUNS, Journal, Narrow
from tests.support.waiting import eventually_async

KIB = 1024


async def try_to_send(sender: Sending, count: int) -> list[Receipt[int] | MailboxFull]:
    """Each to an entity of its own, all at once."""

    async def one(number: int) -> Receipt[int] | MailboxFull:
        journal = sender.at(Journal, f"pending-{number}")
        try:
            return await journal.append.options(timeout=1.0).send("a")
        except MailboxFull as full:
            return full

    return await asyncio.gather(*(one(number) for number in range(count)))


async def test_pending_requests_above_the_limit_are_refused_until_there_is_room(cluster: Cluster) -> None:
    sender = await cluster.client(max_pending=20)
    outcomes = await try_to_send(sender, 100)
    refused = [outcome for outcome in outcomes if isinstance(outcome, MailboxFull)]
    assert cluster.pending == len(outcomes) - len(refused) == 20
    assert "max_pending" in str(refused[0])
    assert "not accepted" in str(refused[0])
    assert all(error.retryable for error in refused)
    await cluster.start()
    await cluster.all_answered()
    accepted = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    assert await asyncio.gather(*accepted) == [1] * 20
    # A sender that meets the limit waits for room, up to its timeout.
    assert await sender.at(Journal, "later").append("a") == 1


async def test_a_payload_above_the_limit_is_refused_before_it_is_sent(cluster: Cluster) -> None:
    cluster.app_settings(max_payload=64 * KIB)
    sender = await cluster.client()
    await cluster.start()
    journal = sender.at(Journal, "payload")
    assert await journal.append("x" * (63 * KIB)) == 1
    with pytest.raises(PayloadTooLarge) as caught:
        await journal.append.send("x" * (64 * KIB))
    assert "not accepted" in str(caught.value)
    assert cluster.count(b"SELECT count(*) FROM entityq.outbox") == 1


async def test_a_reply_above_the_limit_is_the_defect_of_its_turn(cluster: Cluster) -> None:
    cluster.app_settings(max_reply=64 * KIB)
    sender = await cluster.client()
    await cluster.start()
    narrow = sender.at(Narrow, "reply")
    assert len(await narrow.long_reply(60 * KIB)) == 60 * KIB
    with pytest.raises(EntityDefect, match=r"Narrow/reply raised PayloadTooLarge.*state is unchanged"):
        await narrow.long_reply(64 * KIB)
    assert await narrow.append("a") == 1


async def test_a_state_above_the_limit_is_not_written(cluster: Cluster) -> None:
    cluster.app_settings(max_state=64 * KIB)
    sender = await cluster.client()
    await cluster.start()
    narrow = sender.at(Narrow, "state")
    await narrow.grow(40 * KIB)
    with pytest.raises(EntityDefect, match=r"Narrow/state raised PayloadTooLarge.*state is unchanged"):
        await narrow.grow(40 * KIB)
    assert await narrow.peek() == 1
    assert await narrow.append("a") == 2


async def test_a_full_mailbox_refuses_volatile_messages_and_keeps_persisted_ones(cluster: Cluster) -> None:
    sender = await cluster.client()
    runner = await cluster.start()
    narrow = sender.at(Narrow, "volatile")
    held = asyncio.create_task(narrow.held_peek())
    await GATES["volatile"].wait_for_handler()
    # One is running; the mailbox has room for four more.
    waiting = [asyncio.create_task(narrow.peek()) for _ in range(4)]
    try:

        async def full() -> bool:
            return most_queued(runner) == 5

        await eventually_async(full, what="a full mailbox")
        with pytest.raises(MailboxFull, match="mailbox of Narrow/volatile is full") as caught:
            await narrow.peek.options(timeout=2)()
        assert caught.value.retryable
        persisted = [await narrow.append.send(str(number)) for number in range(10)]
        # Its neighbour has a mailbox of its own.
        assert await sender.at(Narrow, "neighbour").peek() == 0
    finally:
        GATES["volatile"].opened.set()
    assert await held == 0
    assert await asyncio.gather(*waiting) == [0] * 4
    assert [await receipt for receipt in persisted] == list(range(1, 11))


async def test_a_volatile_message_without_redis_fails_in_time_and_a_persisted_one_does_not(
    cluster: Cluster, silent_redis: str
) -> None:
    sender = await cluster.client(redis_url=silent_redis)
    await cluster.start()
    narrow = sender.at(Narrow, "dark")
    with pytest.raises(SendTimeout) as caught:
        await narrow.peek.options(timeout=1.0)()
    assert "not accepted" in str(caught.value)
    assert await narrow.append("a") == 1


async def test_turns_at_once_are_bounded(cluster: Cluster) -> None:
    cluster.app_settings(max_turns=3)
    sender = await cluster.client()
    runner = await cluster.start()
    names = [f"busy-{number}" for number in range(10)]
    receipts = [await sender.at(Journal, name).held.send("first") for name in names]

    async def all_there() -> bool:
        return len(runner.life.residents) == 10 and running() == 3

    def running() -> int:
        return sum(RUNS[name, "first"] for name in names)

    await eventually_async(all_there, what="three turns of ten")
    for name in names:
        assert running() <= 3 + names.index(name)
        GATES[name].opened.set()
    assert await asyncio.gather(*receipts) == [1] * 10
    assert running() == 10
