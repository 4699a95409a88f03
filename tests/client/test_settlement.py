from dataclasses import replace

import pytest

from entityq.client.send import Acceptance, Send
from entityq.client.settlement import Again, index, judge
from entityq.errors import Accepted, PrimaryKeyConflict, ReplyExpired
from entityq.postgres.outbox import Known, NewRequest, Stored
from tests.client.bank import Bank

BANK = Bank("any", "postgresql:///any", "redis://any")
CALL = BANK.deposit(1, "r")
REQUEST = NewRequest(7, CALL.address, "deposit", b"digest", b"hash", b"envelope")
FIRST = Known(5, 1, 50, CALL.address, "deposit", b"digest", b"hash", None)
MYSELF = replace(FIRST, request_id=7, seq=70)


def send(*, lost: bool = False) -> Send:
    return Send(CALL, REQUEST, deadline=0.0, lost=lost)


def test_a_known_key_with_the_same_payload_is_joined() -> None:
    assert judge(send(), index([FIRST])) == Acceptance(5, None, duplicate=True)
    answered = index([replace(FIRST, reply=b"reply")])
    assert judge(send(), answered) == Acceptance(5, None, duplicate=True, reply=b"reply")


def test_a_known_key_with_another_payload_is_refused() -> None:
    refused = judge(send(), index([replace(FIRST, payload_hash=b"other")]))
    assert isinstance(refused, PrimaryKeyConflict)
    assert refused.request_id == 5


def test_a_known_key_whose_reply_is_no_longer_kept() -> None:
    expired = judge(send(), index([replace(FIRST, reply=b"")]))
    assert isinstance(expired, ReplyExpired)
    assert (expired.request_id, expired.accepted) == (5, Accepted.NO)
    refused = judge(send(), index([replace(FIRST, reply=b"", payload_hash=b"other")]))
    assert isinstance(refused, PrimaryKeyConflict)


def test_a_lost_send_recognizes_itself() -> None:
    assert judge(send(lost=True), index([MYSELF])) == Acceptance(7, Stored(1, 70))


def test_an_equal_request_of_somebody_else_is_not_itself() -> None:
    assert judge(send(lost=False), index([MYSELF])) is Again.COLLISION


@pytest.mark.parametrize(
    "other",
    [
        replace(MYSELF, payload_hash=b"other"),
        replace(MYSELF, message="note"),
        replace(MYSELF, key_digest=None),
        replace(MYSELF, address=replace(MYSELF.address, id="b")),
    ],
)
def test_another_request_with_its_id_is_a_collision(other: Known) -> None:
    assert judge(send(lost=True), index([other])) is Again.COLLISION


def test_what_it_met_can_be_gone() -> None:
    assert judge(send(), index([])) is Again.VANISHED
