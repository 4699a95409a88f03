"""Signals in the test client."""

import pytest

from entityq import CancelOutcome, Interrupted, MalformedMessage, SignalOutcome, testing
from examples.approvals import THREE_DAYS, Account, Desk, Refused
from tests.support.waiting import eventually_async


async def token_of(client: testing.InProcessClient[Account], reference: str) -> str:
    async def waits() -> bool:
        return reference in await client.at("desk", Desk).read()

    await eventually_async(waits, 5, f"the token of {reference}")
    return (await client.at("desk", Desk).read())[reference]


async def test_a_withdrawal_waits_and_the_account_goes_on() -> None:
    async with testing.client(Account, Desk) as client:
        account = client.at("a")
        receipts = [await account.withdraw.send(5_000, reference=name) for name in ("r-1", "r-2")]
        tokens = [await token_of(client, name) for name in ("r-1", "r-2")]
        await client.settle()
        assert await account.withdraw(100, reference="r-3") == 9_900
        assert (await account.status()).state == "suspended"
        assert await client.signal(tokens[0], {"approved": True, "by": "ann"}) is SignalOutcome.SIGNALLED
        assert await client.signal(tokens[0], 1) is SignalOutcome.ALREADY
        assert await receipts[0] == 4_900
        assert await client.signal(tokens[1], {"approved": False, "by": "bob"}) is SignalOutcome.SIGNALLED
        with pytest.raises(Refused):
            await receipts[1]
        with pytest.raises(MalformedMessage):
            await client.signal("forged", 1)


async def test_the_time_of_a_wait_passes_with_the_clock() -> None:
    async with testing.client(Account, Desk) as client:
        receipt = await client.at("a").withdraw.send(5_000, reference="r")
        token = await token_of(client, "r")
        await client.settle()
        await client.advance(THREE_DAYS)
        with pytest.raises(Exception, match="SignalTimeout"):
            await receipt
        assert await client.signal(token, 1) is SignalOutcome.TIMED_OUT


async def test_a_cancel_ends_a_wait() -> None:
    async with testing.client(Account, Desk) as client:
        receipt = await client.at("a").withdraw.send(5_000, reference="r")
        token = await token_of(client, "r")
        await client.settle()
        assert await receipt.cancel() is CancelOutcome.REQUESTED
        with pytest.raises(Interrupted):
            await receipt
        assert await client.signal(token, 1) is SignalOutcome.ANSWERED


def test_in_sync_code() -> None:
    with testing.client(Account, Desk) as client:
        receipt = client.at("a").withdraw.delay(5_000, reference="r")
        token = ""
        while not token:
            token = client.at("desk", Desk).read.call().get("r", "")
        assert client.signal_blocking(token, {"approved": True, "by": "x"}) is SignalOutcome.SIGNALLED
        assert receipt.get() == 5_000
