"""From what a handler came to, through a stored reply, to what the caller gets."""

from typing import Any

import pytest

from entityq import (
    Accepted,
    EntityDefect,
    EntityNotAssigned,
    EntityQError,
    Failure,
    Interrupted,
    MailboxFull,
    MalformedMessage,
    PayloadTooLarge,
    UnknownFailure,
)
from entityq.codec import Limits, pack
from entityq.definition import MessageDefinition
from entityq.registration import TASK_MESSAGE, TaskOptions, define_task
from entityq.replies import defect_reply, failure_reply, result_of, success_reply
from entityq.reply import Outcome, Reply, decode_reply

LIMITS = Limits()
NO_FIELDS: dict[str, object] = {}


class InsufficientFunds(Failure):
    balance: int


def withdraw(amount: int) -> int:
    return amount


PERSISTED = define_task(withdraw, TaskOptions()).messages[TASK_MESSAGE]
VOLATILE = define_task(withdraw, TaskOptions(persisted=False)).messages[TASK_MESSAGE]


def arrived(reply: Reply, message: MessageDefinition = PERSISTED) -> Any:
    """After being stored."""
    return result_of(decode_reply(reply.request_id, reply.encode()), message, LIMITS)


def test_a_success_is_the_value() -> None:
    assert arrived(success_reply(7, 10, PERSISTED, LIMITS)) == 10
    assert (
        success_reply(7, 10, PERSISTED, LIMITS).encode() == success_reply(8, "10", PERSISTED, LIMITS).encode()
    )


def test_a_value_that_does_not_fit_is_no_success() -> None:
    with pytest.raises(MalformedMessage, match=r"reply of withdraw\.run"):
        success_reply(7, "much", PERSISTED, LIMITS)
    with pytest.raises(PayloadTooLarge, match=r"reply of withdraw\.run"):
        success_reply(7, 2**60, PERSISTED, Limits(max_bytes=3))


def test_a_failure_is_raised_typed() -> None:
    with pytest.raises(InsufficientFunds) as raised:
        arrived(failure_reply(7, InsufficientFunds(balance=3), LIMITS))
    assert raised.value == InsufficientFunds(balance=3)


@pytest.mark.parametrize(
    ("type_", "data"),
    [("Elsewhere", {"since": 3}), ("InsufficientFunds", {"balance": 3, "added_by_a_deploy": 1})],
)
def test_a_failure_that_this_process_cannot_make_arrives_as_it_was_sent(
    type_: str, data: dict[str, object]
) -> None:
    stored = Reply(7, Outcome.FAILURE, type_, pack(data, LIMITS, "failure"))
    with pytest.raises(UnknownFailure) as raised:
        arrived(stored)
    assert (raised.value.type, raised.value.data) == (type_, data)
    assert failure_reply(7, raised.value, LIMITS) == stored, "and can be passed on"


@pytest.mark.parametrize("error", [EntityDefect, MalformedMessage, MailboxFull, PayloadTooLarge, Interrupted])
def test_a_defect_is_the_error_that_it_names(error: type[EntityQError]) -> None:
    reply = defect_reply(7, error, "ZeroDivisionError in Account/a", LIMITS)
    assert reply.outcome is (Outcome.INTERRUPTED if error is Interrupted else Outcome.DEFECT)
    with pytest.raises(error) as raised:
        arrived(reply)
    assert type(raised.value) is error
    assert (raised.value.what, raised.value.request_id) == ("ZeroDivisionError in Account/a", 7)
    assert raised.value.accepted is Accepted.YES


def test_a_volatile_request_was_never_accepted() -> None:
    with pytest.raises(EntityNotAssigned) as raised:
        arrived(defect_reply(7, EntityNotAssigned, "between owners", LIMITS), VOLATILE)
    assert raised.value.accepted is Accepted.NO
    assert raised.value.retryable


def test_an_error_of_newer_code_is_a_defect() -> None:
    stored = Reply(7, Outcome.DEFECT, "QuotaExceeded", pack({"message": "too many"}, LIMITS, "defect"))
    with pytest.raises(EntityDefect, match="too many"):
        arrived(stored)
