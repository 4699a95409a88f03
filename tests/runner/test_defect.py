"""Whether, and when, there is another attempt."""

import pytest

from entityq.address import Address
from entityq.codec import Limits
from entityq.envelope import Envelope
from entityq.errors import (
    Accepted,
    EntityDefect,
    Interrupted,
    MalformedMessage,
    PayloadTooLarge,
    PrimaryKeyConflict,
    SendTimeout,
)
from entityq.replies import defect_reply
from entityq.retry import RetryPolicy
from entityq.runner.defect import Defect, is_lasting, next_attempt
from entityq.runner.request import Request

POLICY = RetryPolicy(initial=1.0, factor=2.0, maximum=60.0, total=100.0, attempts=5)


def defect(*, lasting: bool = False) -> Defect:
    return Defect(ValueError(), defect_reply(1, EntityDefect, "x", Limits(1_000)), lasting)


def request(*, retries: int = 0, lost: int = 0, failing_since: float | None = None) -> Request:
    envelope = Envelope(1, Address("A", "a"), "m", b"", True, 0)
    return Request(envelope, 1, 1, None, lost=lost, retries=retries, failing_since=failing_since)


def delay(
    of: Request, *, lasting: bool = False, began: float = 1_000.0, now: float = 1_001.0
) -> float | None:
    return next_attempt(POLICY, of, defect(lasting=lasting), began=began, now=now, jitter=lambda: 1.0)


def test_pauses_grow_with_the_attempts_that_failed_and_not_with_those_that_were_lost() -> None:
    assert [delay(request(retries=retries)) for retries in range(6)] == [1.0, 2.0, 4.0, 8.0, None, None]
    assert delay(request(lost=3)) == 1.0
    assert request(retries=2, lost=3).attempt == 6


def test_the_total_counts_from_the_begin_of_the_first_attempt() -> None:
    assert delay(request(retries=3, failing_since=905.0)) == 4.0
    assert delay(request(retries=3, failing_since=900.0)) is None
    assert delay(request(), began=900.0) is None


def test_what_lasts_is_given_up() -> None:
    assert delay(request(), lasting=True) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(), 0),
        (SystemExit(), 0),
        (MalformedMessage("x"), 1),
        (PayloadTooLarge("x"), 1),
        (PrimaryKeyConflict("x"), 1),
        (SendTimeout("x"), 0),
        (EntityDefect("of a persisted ask: a repeat joins it"), 1),
        (EntityDefect("of a volatile one", accepted=Accepted.NO), 0),
        (Interrupted("x"), 1),
    ],
)
def test_what_another_attempt_would_not_change(error: BaseException, expected: int) -> None:
    assert is_lasting(error) is bool(expected)
