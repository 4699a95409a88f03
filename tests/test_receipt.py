"""Receipts: the reply can be waited for, in async and in sync code."""

import pytest

from entityq import CancelOutcome, Failure, Receipt
from entityq.address import Address

ADDRESS = Address("Account", "acct-1")


class Closed(Failure):
    pass


class Waits:
    """What a sender gives to its receipts; remembers the timeouts."""

    def __init__(self, failure: Failure | None = None) -> None:
        self.timeouts: list[float | None] = []
        self._failure = failure

    async def wait(self, seconds: float | None) -> int:
        return self.block(seconds)

    def block(self, seconds: float | None) -> int:
        self.timeouts.append(seconds)
        if self._failure is not None:
            raise self._failure
        return 42

    async def cancel(self) -> CancelOutcome:
        return self.cancel_blocking()

    def cancel_blocking(self) -> CancelOutcome:
        return CancelOutcome.REQUESTED


def receipt_of(waits: Waits, *, duplicate: bool = False) -> Receipt[int]:
    return Receipt(
        7,
        ADDRESS,
        duplicate=duplicate,
        wait=waits.wait,
        block=waits.block,
        cancel=waits.cancel,
        cancel_blocking=waits.cancel_blocking,
    )


async def test_awaiting_gives_the_reply_as_often_as_wanted() -> None:
    waits = Waits()
    receipt = receipt_of(waits)
    assert await receipt == 42
    assert await receipt == 42
    assert waits.timeouts == [None, None]


def test_get_gives_the_reply_within_its_timeout() -> None:
    waits = Waits()
    receipt = receipt_of(waits)
    assert receipt.get() == 42
    assert receipt.get(timeout=5) == 42
    assert waits.timeouts == [None, 5]


async def test_both_raise_the_failure() -> None:
    receipt = receipt_of(Waits(Closed()))
    with pytest.raises(Closed):
        await receipt
    with pytest.raises(Closed):
        receipt.get()


def test_it_says_which_request_it_is_of() -> None:
    first, repeat = receipt_of(Waits()), receipt_of(Waits(), duplicate=True)
    assert (first.request_id, first.address, first.duplicate, repeat.duplicate) == (7, ADDRESS, False, True)
    assert repr(first) == "<Receipt of request 7 to Account/acct-1>"
    assert repr(repeat) == "<Receipt of request 7 to Account/acct-1, duplicate>"


async def test_it_cancels_its_request() -> None:
    receipt = receipt_of(Waits())
    assert await receipt.cancel() is CancelOutcome.REQUESTED
    assert receipt.cancel_blocking() is CancelOutcome.REQUESTED
