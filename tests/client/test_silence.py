from dataclasses import replace

import pytest

from entityq.client.silence import explain_silence
from entityq.errors import (
    Accepted,
    EntityNotAssigned,
    EntityQError,
    RunnerNotRegistered,
    RunnerUnavailable,
    SendTimeout,
)
from entityq.postgres.membership import Member
from tests.client.bank import Bank

RUNNER = Member(
    incarnation=1,
    number=1,
    name="r",
    pid=1,
    groups=frozenset({"default"}),
    types=frozenset({"Account"}),
    weight=1.0,
    draining=False,
    groups_of_types=("default",),
)
ELSEWHERE = replace(RUNNER, groups=frozenset({"other"}))
IGNORANT = replace(RUNNER, types=frozenset({"Order"}))
DRAINING = replace(RUNNER, draining=True)


@pytest.mark.parametrize(
    ("members", "persisted", "volatile"),
    [
        (None, SendTimeout, SendTimeout),
        ([], RunnerUnavailable, RunnerUnavailable),
        ([ELSEWHERE], RunnerUnavailable, RunnerUnavailable),
        ([IGNORANT], RunnerNotRegistered, RunnerNotRegistered),
        ([IGNORANT, RUNNER], SendTimeout, SendTimeout),
        ([DRAINING], SendTimeout, EntityNotAssigned),
    ],
)
def test_what_the_live_runners_say(
    members: list[Member] | None, persisted: type[EntityQError], volatile: type[EntityQError]
) -> None:
    bank = Bank("any", "postgresql:///any", "redis://any")
    note, read = bank.note(), bank.read()
    error = explain_silence(note, 7, 1.5, members)
    assert type(error) is persisted
    assert error.accepted is Accepted.YES
    assert error.request_id == 7
    assert "Account/a to note within 1.5 s" in str(error)
    error = explain_silence(read, 7, 1.5, members)
    assert type(error) is volatile
    assert error.accepted is Accepted.NO
