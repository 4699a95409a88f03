"""Batches in process."""

import pytest

from entityq import MalformedMessage, RunnerNotRegistered, testing
from examples.bank import Account, add


async def test_a_batch() -> None:
    async with testing.client(Account, add) as client:
        deposit = client.at("a").deposit
        sent = await client.send_many(
            [
                deposit.request(1, reference="r-1"),
                deposit.request(1, reference="r-1"),
                deposit.request(2, reference="r-1"),
                client.task(add).request(2, 3),
            ]
        )
        assert [each.status for each in sent] == ["accepted", "duplicate", "conflict", "accepted"]
        assert [await each.receipt for each in (sent[0], sent[1], sent[3])] == [1, 1, 5]


async def test_what_cannot_be_sent_keeps_out_the_rest_too() -> None:
    async with testing.client(Account) as client:
        deposit = client.at("a").deposit.request(1, reference="r-1")
        with pytest.raises(RunnerNotRegistered, match="has no add"):
            await client.send_many([deposit, client.task(add).request(2, 3)])
        with pytest.raises(MalformedMessage, match="of another app, or of a test client"):
            await client.send_many([deposit, Account.at("a").deposit.request(1, reference="r-2")])
        assert await client.at("a").read() == 0


def test_a_batch_from_sync_code() -> None:
    with testing.client(Account) as client:
        sent = client.delay_many([client.at("a").deposit.request(1, reference="r-1")])
        assert sent[0].receipt.get() == 1
