"""`entityq send`: what it prints, and how it ends."""

from pathlib import Path

import pytest

from tests.cli.workers import BANK, start_worker, write_app
from tests.support.processes import CommandLine, Finished

DEPOSIT = '{"amount": 5, "reference": "r1"}'
UNREACHABLE = "postgresql://nobody:secret@127.0.0.1:1/nothing"


def send(entityq: CommandLine, *arguments: str) -> Finished:
    return entityq.run("send", "-A", BANK, *arguments)


def test_a_reply_is_json_on_stdout_and_a_repeat_gets_the_same(entityq: CommandLine) -> None:
    start_worker(entityq)

    first = send(entityq, "Account/a", "deposit", "-k", DEPOSIT, "--wait")
    again = send(entityq, "Account/a", "deposit", "-k", DEPOSIT, "--wait")
    document = send(entityq, "Account/a", "deposit", "-k", DEPOSIT, "--wait", "-j").json()
    balance = send(entityq, "Account/a", "read", "--wait")

    assert (first.code, first.stdout) == (0, "5\n")
    assert (again.code, again.stdout) == (0, "5\n")
    assert "the primary key is known" in again.stderr and "known" not in first.stderr
    assert document["duplicate"] is True
    assert (document["outcome"], document["reply"]) == ("success", 5)
    assert document["request_id"] in first.stderr
    assert balance.stdout == "5\n"


def test_another_payload_for_a_known_key_is_refused_with_the_first_request(entityq: CommandLine) -> None:
    first = send(entityq, "Account/a", "deposit", "-k", DEPOSIT).stdout.strip()

    refused = send(entityq, "Account/a", "deposit", "-k", DEPOSIT.replace("5", "6"), "-j")

    assert refused.code == 1
    error = refused.json()["error"]
    assert (error["type"], error["accepted"], error["request_id"]) == ("PrimaryKeyConflict", "no", first)
    assert refused.stderr.startswith("Error: ") and first in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_failure_has_its_type_and_its_fields(entityq: CommandLine) -> None:
    start_worker(entityq)
    withdraw = ("Account/a", "withdraw", "-k", DEPOSIT, "--wait")

    text = send(entityq, *withdraw)
    document = send(entityq, *withdraw, "-j")

    assert (text.code, text.stdout) == (1, "")
    assert "Account/a answered with the failure InsufficientFunds(balance=0)" in text.stderr
    assert document.code == 1
    failure = document.json()
    assert (failure["outcome"], failure["type"], failure["fields"]) == (
        "failure",
        "InsufficientFunds",
        {"balance": 0},
    )


def test_a_task_is_addressed_by_its_name(entityq: CommandLine) -> None:
    start_worker(entityq)

    by_place = send(entityq, "add", "-a", "[2, 3]", "--wait")
    by_name = send(entityq, "add", "-k", '{"x": 2, "y": 4}', "--wait")
    first = send(entityq, "add", "-a", "[2, 5]", "--primary-key", "k")
    again = send(entityq, "add", "-a", "[2, 5]", "--primary-key", "k")

    assert (by_place.stdout, by_name.stdout) == ("5\n", "6\n")
    assert first.stdout == again.stdout
    assert "the primary key is known" in again.stderr


def test_without_wait_the_request_id_alone(entityq: CommandLine) -> None:
    text = send(entityq, "Account/a", "deposit", "-k", DEPOSIT)
    document = send(entityq, "Account/b", "deposit", "-k", DEPOSIT, "-j")

    assert text.code == 0 and text.stdout.strip().isdecimal() and text.stderr == ""
    assert document.json()["request_id"].isdecimal()
    assert document.json() | {"request_id": "?"} == {
        "request_id": "?",
        "address": "Account/b",
        "duplicate": False,
    }


def test_later(entityq: CommandLine) -> None:
    """It is accepted at once, and runs when its time has come: here, after the one that was sent later."""
    start_worker(entityq)
    later = send(entityq, "Account/a", "deposit", "-k", DEPOSIT, "--delay", "3", "-j")
    far = send(entityq, "Account/b", "deposit", "-k", DEPOSIT, "--eta", "2090-01-31T09:00+02:00", "-j")
    now = send(entityq, "Account/a", "deposit", "-k", '{"amount": 1, "reference": "n"}', "--wait")

    joined = send(entityq, "Account/a", "deposit", "-k", DEPOSIT, "--wait", "-j").json()
    assert (joined["request_id"], joined["duplicate"]) == (later.json()["request_id"], True)
    assert (now.stdout, joined["reply"]) == ("1\n", 6)
    found = entityq.run("inspect", "entity", "Account/b", "-j").json()
    assert [timer["request_id"] for timer in found["timers"]] == [far.json()["request_id"]]
    assert found["timers"][0]["due_at"] == "2090-01-31T07:00:00.000Z"


def test_options_come_from_variables(entityq: CommandLine) -> None:
    start_worker(entityq)
    env = {"ENTITYQ_APP": BANK, "ENTITYQ_KWARGS": DEPOSIT, "ENTITYQ_WAIT": "1", "ENTITYQ_JSON": "1"}

    finished = entityq.run("send", "Account/a", "deposit", env=env)

    assert finished.json()["reply"] == 5


def test_nobody_serves_and_the_request_stays_accepted(entityq: CommandLine) -> None:
    finished = send(entityq, "Account/a", "deposit", "-k", DEPOSIT, "--wait", "--timeout", "0.5")

    assert finished.code == 69
    assert "no live runner" in finished.stderr.lower()
    assert ": accepted." in finished.stderr


def test_a_slow_turn_times_out_and_the_request_stays_accepted(entityq: CommandLine, tmp_path: Path) -> None:
    app = write_app(
        tmp_path, "import asyncio\n\n@app.task\nasync def slow() -> None:\n    await asyncio.sleep(60)\n"
    )
    start_worker(entityq, app=app, cwd=tmp_path, env={"ENTITYQ_TERMINATION_TIME": "0"})

    finished = entityq.run("send", "-A", app, "slow", "--wait", "--timeout", "0.5", cwd=tmp_path)

    assert finished.code == 75
    assert ": accepted." in finished.stderr


def test_an_unreachable_server_is_one_sentence_without_the_password(entityq: CommandLine) -> None:
    finished = entityq.run(
        "send", "-A", BANK, "Account/a", "deposit", "-k", DEPOSIT, env={"ENTITYQ_POSTGRES_URL": UNREACHABLE}
    )

    assert finished.code == 69
    assert "Error: Cannot connect to Postgres at postgresql://***@127.0.0.1:1/nothing" in finished.stderr
    assert "Traceback" not in finished.stderr and "secret" not in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("Acount/a", "deposit"), "The app has no entity type or task Acount. It has: Account, add."),
        (("Account/a", "deposti"), "Account has no message deposti. It has: deposit, withdraw, read."),
        (("Account/a",), "Account needs a message. It has: deposit, withdraw, read."),
        (("Account", "deposit"), "'Account' is not an address. Write type and id, as in Account/1."),
        (("add/1",), "add is a task: it is addressed by its name alone."),
        (("add", "run"), "add is a task: it is addressed by its name alone."),
        (("Account/a", "deposit", "-k", "{amount: 5}"), "--kwargs is not JSON: "),
        (("Account/a", "deposit", "-k", "[5]"), "--kwargs must be a JSON object."),
        (("add", "-a", "{}"), "--args must be a JSON array."),
        (("add", "-a", "[1]"), "payload of add.run: y: Field required"),
        (("add", "-a", '[1, "two"]'), "payload of add.run: y: "),
        (("add", "-a", "[1, 2, 3]"), "payload of add.run: 3 arguments by place, at most 2 fit"),
        (
            ("Account/a", "deposit", "-k", DEPOSIT, "--primary-key", "k"),
            "Account.deposit takes its primary key from the parameter reference",
        ),
        (("add", "-a", "[1, 2]", "--eta", "soon"), "--eta is not a time in ISO 8601: soon."),
        (
            ("add", "-a", "[1, 2]", "--eta", "2030-01-31T09:00"),
            "--eta has no time zone: 2030-01-31T09:00:00. Add one, as in 2030-01-31T09:00Z",
        ),
        (("add", "-a", "[1, 2]", "--delay", "-1"), "--delay must be from 0 seconds to 100 years, not -1.0."),
        (
            ("add", "-a", "[1, 2]", "--delay", "1", "--eta", "2030-01-31T09:00Z"),
            "--eta and --delay are both given: a request has one time.",
        ),
    ],
)
def test_what_nobody_could_process_is_a_usage_error(
    offline: CommandLine, arguments: tuple[str, ...], sentence: str
) -> None:
    finished = send(offline, *arguments)

    assert finished.code == 2
    assert finished.stderr.startswith(f"Error: {sentence}")
    assert finished.stderr.count("\n") == 1
    assert finished.stdout == ""


def test_a_timeout_of_nothing_is_a_usage_error(offline: CommandLine) -> None:
    assert send(offline, "add", "-a", "[1, 2]", "--timeout", "0").code == 2
