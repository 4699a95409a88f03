"""`entityq inspect`: an entity, a request, as the database has them."""

import re
from pathlib import Path

import pytest

from tests.cli.workers import BANK, start_worker
from tests.support.processes import CommandLine
from tests.support.servers import connected

DEPOSIT = '{"amount": 5, "reference": "r1"}'
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def send(entityq: CommandLine, message: str, *options: str) -> str:
    sent = entityq.run("send", "-A", BANK, "Account/a", message, "-k", DEPOSIT, *options)
    found = re.search(r"\d{15,}", sent.stdout + sent.stderr)
    assert found is not None, sent.stderr
    return found[0]


def test_an_entity_that_waits_and_then_works(entityq: CommandLine) -> None:
    request_id = send(entityq, "deposit")

    waiting = entityq.run("inspect", "entity", "Account/a", "-j").json()

    assert (waiting["address"], waiting["status"], waiting["waiting"]) == ("Account/a", "processing", 1)
    assert (waiting["state"], waiting["version"], waiting["owner"]) == (None, None, None)
    (request,) = waiting["requests"]
    assert (request["request_id"], request["message"], request["outcome"]) == (
        request_id,
        "deposit",
        "pending",
    )

    start_worker(entityq, "-n", "owner")
    send(entityq, "deposit", "--wait")
    document = entityq.run("inspect", "entity", "-A", BANK, "Account/a", "-j").json()
    text = entityq.run("-A", BANK, "inspect", "entity", "Account/a").stdout

    assert (document["status"], document["state"], document["state_as"]) == (
        "complete",
        {"balance": 5},
        "app",
    )
    assert (document["version"], document["state_version"], document["dead_letters"]) == ("1", 1, 0)
    assert document["owner"]["name"] == "owner"
    assert document["owner"]["incarnation"].isdecimal()
    assert int(document["epoch"]) >= 1
    assert re.fullmatch(TIME, document["updated_at"])
    (request,) = document["requests"]
    assert (request["outcome"], document["waiting"], document["timers"]) == ("success", 0, [])
    assert re.search(r"^status +complete$", text, re.MULTILINE)
    assert re.search(rf"^{request_id} +deposit +{TIME} +success$", text, re.MULTILINE)
    assert "State:\nbalance  5\n" in text


def test_without_the_app_the_state_is_shown_as_it_is_stored(entityq: CommandLine, tmp_path: Path) -> None:
    start_worker(entityq)
    send(entityq, "deposit", "--wait")

    document = entityq.run("inspect", "entity", "Account/a", "-j", cwd=tmp_path).json()
    text = entityq.run("inspect", "entity", "Account/a", cwd=tmp_path).stdout

    assert (document["state"], document["state_as"]) == ({"balance": 5}, "stored")
    assert "State (as stored):\nbalance  5\n" in text


def test_an_entity_that_nobody_has_sent_anything(entityq: CommandLine) -> None:
    send(entityq, "deposit")

    finished = entityq.run("inspect", "entity", "Account/never", "-j")

    assert finished.code == 0
    assert (finished.json()["status"], finished.json()["requests"]) == ("idle", [])


def test_an_unknown_type_and_what_is_no_address(entityq: CommandLine, namespace: str) -> None:
    unknown = entityq.run("inspect", "entity", "Nothing/a")
    malformed = entityq.run("inspect", "entity", "Account", "-j")

    assert unknown.code == 1
    assert unknown.stderr == f"Error: The namespace {namespace} has no entity type Nothing.\n"
    assert malformed.code == 1
    assert malformed.json()["error"]["type"] == "MalformedMessage"


def test_a_request_before_and_after_its_reply(entityq: CommandLine) -> None:
    request_id = send(entityq, "deposit")

    pending = entityq.run("inspect", "request", request_id, "-j").json()

    assert (pending["request_id"], pending["state"], pending["outcome"]) == (request_id, "pending", None)
    assert (pending["address"], pending["message"], pending["primary_key"]) == ("Account/a", "deposit", "r1")
    assert pending["unanswered"] == {
        "attempts": 0,
        "retries": 0,
        "failing_since": None,
        "resume_at": None,
        "suspended": False,
        "cancelled": False,
        "due_at": None,
    }
    assert pending["payload_bytes"] > 0

    start_worker(entityq, "-n", "owner")
    send(entityq, "deposit", "--wait")
    answered = entityq.run("inspect", "request", request_id, "-j")
    text = entityq.run("inspect", "request", request_id).stdout

    assert answered.code == 0
    document = answered.json()
    assert (document["state"], document["outcome"], document["unanswered"]) == ("answered", "success", None)
    assert re.fullmatch(TIME, document["created_at"])
    assert re.fullmatch(TIME, document["replied_at"])
    assert document["owner"]["name"] == "owner"
    assert re.search(r"^message +Account/a deposit$", text, re.MULTILINE)
    assert re.search(rf"^answered +{TIME}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("UPDATE pending SET cancelled = true", "being cancelled"),
        ("UPDATE pending SET suspended = true, resume_at = 'infinity'", "suspended"),
        (
            "UPDATE pending SET retries = 2, failing_since = now(), resume_at = now() + interval '1 h'",
            "waiting to be retried",
        ),
        (
            (
                "WITH gone AS (DELETE FROM pending RETURNING *) INSERT INTO timer (shard_id, due_at, request_id,"
                " entity_hash) SELECT shard_id, now() + interval '1 day', request_id, entity_hash FROM gone"
            ),
            "waiting for its time",
        ),
        (
            (
                "WITH gone AS (DELETE FROM pending RETURNING *) INSERT INTO timer (shard_id, due_at, request_id,"
                " entity_hash, retries) SELECT shard_id, now(), request_id, entity_hash, 1 FROM gone"
            ),
            "waiting to be retried",
        ),
    ],
)
def test_what_a_request_waits_for(entityq: CommandLine, postgres_url: str, change: str, state: str) -> None:
    request_id = send(entityq, "deposit")
    with connected(postgres_url) as sql:
        sql.execute("SET search_path TO entityq")
        sql.execute(change.encode())

    document = entityq.run("inspect", "request", request_id, "-j").json()
    entity = entityq.run("inspect", "entity", "Account/a", "-j").json()

    assert document["state"] == state
    assert [timer["request_id"] for timer in entity["timers"]] == [request_id] * ("timer" in change)
    assert (entity["status"] == "suspended") is (state == "suspended")
    assert entityq.run("inspect", "request", request_id).code == 0
    assert entityq.run("inspect", "entity", "Account/a").code == 0


def test_dead_letters_signals_and_timers_are_counted_and_shown(
    entityq: CommandLine, postgres_url: str, namespace: str
) -> None:
    request_id = send(entityq, "deposit")
    with connected(postgres_url) as sql:
        sql.execute("SET search_path TO entityq")
        for attempts, error, handled in ((3, "ValueError", None), (2, "KeyError", "ann")):
            sql.execute(
                "INSERT INTO dead_letter (request_id, namespace, type, entity_id, message, attempts, error_type,"
                " error, cause, requeued_at, requeued_by)"
                " VALUES (%s, %s, 'Account', 'a', 'deposit', %s, %s, 'no', '{}', CASE WHEN %s THEN now() END, %s)",
                [request_id, namespace, attempts, error, handled is not None, handled],
            )
        sql.execute("INSERT INTO signal (request_id, name, waiting) VALUES (%s, 'paid', true)", [request_id])
        sql.execute(
            "INSERT INTO timer (shard_id, due_at, request_id, entity_hash)"
            " SELECT shard_id, 'infinity', 5, 0 FROM pending"
        )

    document = entityq.run("inspect", "request", request_id, "-j").json()
    text = entityq.run("inspect", "request", request_id).stdout
    status = entityq.run("status", "-j").json()
    status_text = entityq.run("status").stdout

    assert [letter["error_type"] for letter in document["dead_letters"]] == ["ValueError", "KeyError"]
    assert document["dead_letters"][0]["requeued_at"] is None
    assert document["dead_letters"][1]["requeued_by"] == "ann"
    assert document["signals"] == [{"name": "paid", "waiting": True, "signalled_at": None}]
    assert re.search(rf"^{TIME} +2 +KeyError +requeued {TIME} by ann$", text, re.MULTILINE)
    assert re.search(r"^paid +yes +-$", text, re.MULTILINE)
    assert entityq.run("inspect", "entity", "Account/a", "-j").json()["dead_letters"] == 1
    assert (status["dead_letters"], status["groups"][0]["timers"]) == (1, 1)
    assert "\n1 dead letters that nobody has handled" in status_text


def test_what_is_no_longer_kept(entityq: CommandLine, postgres_url: str) -> None:
    request_id = send(entityq, "deposit")
    with connected(postgres_url) as sql:
        sql.execute("SET search_path TO entityq")
        sql.execute("UPDATE outbox SET reply = '', envelope = '', replied_at = now()")
        sql.execute("DELETE FROM pending")

    request = entityq.run("inspect", "request", request_id, "-j").json()
    (last,) = entityq.run("inspect", "entity", "Account/a", "-j").json()["requests"]
    result, result_json = entityq.run("result", request_id), entityq.run("result", request_id, "-j")
    repeated = entityq.run("send", "-A", BANK, "Account/a", "deposit", "-k", DEPOSIT, "-j")

    assert request["state"] == "answered, and its reply is no longer kept"
    assert (request["primary_key"], request["payload_bytes"]) == (None, None)
    assert last["outcome"] == "expired"
    assert result.code == 1
    assert re.search(rf"was answered at {TIME}; its reply is no longer kept", result.stderr)
    assert (result_json.code, result_json.json()["outcome"]) == (1, "expired")
    assert (repeated.code, repeated.json()["error"]["type"]) == (1, "ReplyExpired")


def test_an_unknown_request(entityq: CommandLine, namespace: str) -> None:
    finished = entityq.run("inspect", "request", "5")

    assert finished.code == 1
    assert f"There is no request 5 in the namespace {namespace}, or it is no longer kept." in finished.stderr
    assert entityq.run("inspect", "request", "five").code == 2


def test_an_unreachable_server(entityq: CommandLine) -> None:
    url = "postgresql://nobody:secret@127.0.0.1:1/nothing"
    for what in (("entity", "Account/a"), ("request", "5")):
        finished = entityq.run("inspect", *what, "-j", env={"ENTITYQ_POSTGRES_URL": url})
        assert finished.code == 69
        assert finished.json()["error"]["type"] == "PersistenceError"
        assert "secret" not in finished.stdout + finished.stderr
