"""Approvals, with a worker that is killed while a withdrawal waits, and one that follows it."""

import json

import pytest

from tests.support.processes import CommandLine
from tests.support.waiting import eventually

APP = ("-A", "examples.approvals:app")


def tokens(entityq: CommandLine) -> dict[str, str]:
    shown = entityq.run("send", *APP, "Desk/desk", "read", "--wait")
    assert shown.code == 0, shown.stderr
    waiting: dict[str, str] = json.loads(shown.stdout)
    return waiting


def withdraw(entityq: CommandLine, amount: int, reference: str) -> str:
    payload = json.dumps({"amount": amount, "reference": reference})
    sent = entityq.run("send", *APP, "Account/a", "withdraw", "-k", payload)
    assert sent.code == 0, sent.stderr
    return sent.stdout.strip()


def test_a_withdrawal_waits_through_the_death_of_its_worker(entityq: CommandLine) -> None:
    fast = {"ENTITYQ_LEASE_TIME": "2"}
    worker = entityq.spawn("worker", *APP, "-c", "1", "-n", "first", env=fast)
    worker.wait_for(r"runner\.joined")
    large = withdraw(entityq, 5_000, "r-1")
    refused = withdraw(entityq, 6_000, "r-2")
    eventually(lambda: set(tokens(entityq)) == {"r-1", "r-2"}, 20, "two withdrawals that wait")
    # The account goes on.
    small = withdraw(entityq, 100, "r-3")
    eventually(lambda: entityq.run("result", *APP, small).stdout == "9900\n", 20, "the small one")
    waiting = tokens(entityq)
    worker.kill()

    done = entityq.run("signal", *APP, waiting["r-1"], '{"approved": true, "by": "ann"}')
    assert (done.code, done.stdout) == (0, "signalled\n"), done.stderr
    second = entityq.spawn("worker", *APP, "-c", "1", "-n", "second", env=fast)
    second.wait_for(r"runner\.joined")
    eventually(lambda: entityq.run("result", *APP, large).stdout == "4900\n", 20, "the approved one")
    assert entityq.run("result", *APP, refused).code == 75

    done = entityq.run("signal", *APP, waiting["r-2"], '{"approved": false, "by": "bob"}', "-j")
    assert (done.code, done.json()) == (0, {"outcome": "signalled"})
    eventually(lambda: entityq.run("result", *APP, refused).code == 1, 20, "the refused one")
    assert 'Refused {"by":"bob"}' in entityq.run("result", *APP, refused).stderr

    again = entityq.run("signal", *APP, waiting["r-2"], "1")
    assert (again.code, again.stdout) == (1, "")
    assert again.stderr == "Error: It is already signalled: the first value stands.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [(("x" * 40, "1"), 1, "no token of a signal"), (("x", "{"), 2, "not JSON")],
)
def test_what_is_no_token_or_no_json(
    entityq: CommandLine, arguments: tuple[str, ...], code: int, text: str
) -> None:
    entityq.run("send", *APP, "Desk/desk", "put", "-k", '{"reference": "r", "token": "t"}')
    finished = entityq.run("signal", *APP, *arguments)
    assert finished.code == code, finished.stderr
    assert text in finished.stderr
