"""`entityq result`: the second half of a send that did not wait."""

from tests.cli.workers import BANK, start_worker
from tests.support.processes import CommandLine

DEPOSIT = '{"amount": 5, "reference": "r1"}'


def send(entityq: CommandLine, message: str) -> str:
    sent = entityq.run("send", "-A", BANK, "Account/a", message, "-k", DEPOSIT)
    assert sent.code == 0, sent.stderr
    return sent.stdout.strip()


def test_pending_then_answered(entityq: CommandLine) -> None:
    request_id = send(entityq, "deposit")

    pending = entityq.run("result", request_id)
    document = entityq.run("result", request_id, "-j")

    assert (pending.code, pending.stdout) == (75, "")
    assert (
        f"Request {request_id} (Account/a deposit) is not answered yet; it stays accepted." in pending.stderr
    )
    assert document.code == 75
    assert (document.json()["outcome"], document.json()["replied_at"]) == ("pending", None)

    start_worker(entityq)
    entityq.run("send", "-A", BANK, "Account/a", "deposit", "-k", DEPOSIT, "--wait")
    answered = entityq.run("result", request_id)
    document = entityq.run("result", request_id, "-j")

    assert (answered.code, answered.stdout) == (0, "5\n")
    shown = document.json()
    assert (shown["request_id"], shown["address"], shown["message"]) == (request_id, "Account/a", "deposit")
    assert (shown["outcome"], shown["reply"]) == ("success", 5)
    assert shown["created_at"].endswith("Z") and shown["replied_at"].endswith("Z")


def test_a_failure_ends_as_it_does_for_a_send_that_waits(entityq: CommandLine) -> None:
    start_worker(entityq)
    entityq.run("send", "-A", BANK, "Account/a", "withdraw", "-k", DEPOSIT, "--wait")
    request_id = send(entityq, "withdraw")

    text = entityq.run("result", request_id)
    document = entityq.run("result", request_id, "-j")

    assert text.code == 1
    assert 'was answered with the failure InsufficientFunds {"balance":0}' in text.stderr
    assert document.code == 1
    assert (document.json()["type"], document.json()["fields"]) == ("InsufficientFunds", {"balance": 0})


def test_an_unknown_request(entityq: CommandLine, namespace: str) -> None:
    finished = entityq.run("result", "5")

    assert finished.code == 1
    assert finished.stderr == f"Error: There is no request 5 in the namespace {namespace}.\n"


def test_what_is_no_request_id_is_a_usage_error(entityq: CommandLine) -> None:
    for text in ("five", "0", str(2**63)):
        assert entityq.run("result", text).code == 2
