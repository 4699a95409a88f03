"""`entityq cancel`, with and without a worker."""

from pathlib import Path

from tests.cli.workers import BANK, start_worker
from tests.support.processes import CommandLine

DEPOSIT = '{"amount": 5, "reference": "r1"}'


def deposit(entityq: CommandLine) -> str:
    sent = entityq.run("send", "-A", BANK, "Account/a", "deposit", "-k", DEPOSIT)
    assert sent.code == 0, sent.stderr
    return sent.stdout.strip()


def test_a_request_that_nobody_runs_yet_is_cancelled_for_good(entityq: CommandLine) -> None:
    request_id = deposit(entityq)

    requested = entityq.run("cancel", request_id)
    assert (requested.code, requested.stdout) == (0, "requested\n")
    start_worker(entityq)
    repeated = entityq.run("send", "-A", BANK, "Account/a", "deposit", "-k", DEPOSIT, "--wait")
    assert repeated.code == 1
    assert "deposit to Account/a was cancelled before it ran" in repeated.stderr

    again = entityq.run("cancel", request_id, "-j")
    assert (again.code, again.json()) == (0, {"request_id": request_id, "outcome": "cancelled"})
    result = entityq.run("result", request_id, "-j")
    assert (result.code, result.json()["outcome"], result.json()["type"]) == (1, "interrupted", "Interrupted")


def test_what_is_answered_cannot_be_cancelled(entityq: CommandLine) -> None:
    start_worker(entityq)
    request_id = deposit(entityq)
    entityq.run("send", "-A", BANK, "Account/a", "deposit", "-k", DEPOSIT, "--wait")

    late = entityq.run("cancel", request_id)
    document = entityq.run("cancel", request_id, "-j")

    assert (late.code, late.stdout) == (1, "")
    assert late.stderr == f"Error: Request {request_id} is already answered: its reply stands.\n"
    assert (document.code, document.json()) == (1, {"request_id": request_id, "outcome": "already answered"})
    assert entityq.run("result", request_id).stdout == "5\n"


def test_an_unknown_request(entityq: CommandLine, namespace: str) -> None:
    entityq.run("send", "-A", BANK, "Account/a", "deposit", "-k", DEPOSIT)
    finished = entityq.run("cancel", "5")

    assert (finished.code, finished.stdout) == (1, "")
    assert finished.stderr == (
        f"Error: There is no request 5 in the namespace {namespace}, or it is no longer kept.\n"
    )
    assert entityq.run("cancel", "five").code == 2


def test_without_a_server(entityq: CommandLine, tmp_path: Path) -> None:
    nobody = {"ENTITYQ_POSTGRES_URL": f"postgresql:///x?host={tmp_path}"}
    finished = entityq.run("cancel", "5", env=nobody)
    assert finished.code == 69, finished.stderr
