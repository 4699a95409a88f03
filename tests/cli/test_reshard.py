"""`entityq reshard`, killed in the middle, and what people see of it."""

import re
import signal

import pytest

from entityq.address import lock_class
from tests.cli.workers import BANK, start_worker
from tests.support.processes import CommandLine
from tests.support.servers import SCHEMA, SHARDS, connected
from tests.support.waiting import eventually

MOVED = "SELECT count(*) FROM entityq.outbox o JOIN entityq.reshard_group r ON o.shard_id >= r.first_shard"
COPY = """
    WITH o AS (
        INSERT INTO entityq.outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message,
                                    payload_hash, envelope, reply, replied_at)
        SELECT n, shard_id, nextval('entityq.outbox_seq'), entity_hash, type, entity_id, message,
               payload_hash, envelope, reply, replied_at
        FROM entityq.outbox, generate_series(1, 3000) AS n
    ) SELECT 1
"""


def deposit(entityq: CommandLine, account: str, reference: str, *options: str) -> tuple[int, str, str]:
    arguments = f'{{"amount": 5, "reference": "{reference}"}}'
    sent = entityq.run("send", "-A", BANK, f"Account/{account}", "deposit", "-k", arguments, *options)
    return sent.code, sent.stdout.strip(), sent.stderr


def test_killed_in_the_middle_and_run_again(entityq: CommandLine, postgres_url: str, namespace: str) -> None:
    worker = start_worker(entityq)
    assert deposit(entityq, "a", "r1", "--wait")[:2] == (0, "5")
    with connected(postgres_url) as sql:
        sql.execute(COPY)  # enough rows to be killed among them

        def moved() -> int:
            row = sql.execute(MOVED).fetchone()
            return int(str(row and row[0]))

        # The worker runs on: its runner gives its shards up, and waits.
        running = entityq.spawn("reshard", "--group", "default", "--shards", "40", "--batch", "1")
        running.wait_for("Closed shard group default")
        eventually(lambda: moved() > 50, 30, "rows that have moved")
        running.kill()
        assert moved() < 3000

        health = entityq.run("health")
        status = entityq.run("status")
        document = entityq.run("status", "-j").json()
        unfinished = entityq.run("reshard", "--status")
        other = entityq.run("reshard", "--group", "default", "--shards", "41")
        code, _, refused = deposit(entityq, "a", "r2")
        known = deposit(entityq, "a", "r1", "--wait")

    command = "entityq reshard --group default --shards 40"
    assert health.code == 69
    assert f"a reshard is not finished: shard group default to 40 shards. If nobody runs it: {command}" in (
        health.stdout
    )
    assert re.search(rf"^default +closed +{SHARDS} ", status.stdout, re.MULTILINE)
    assert f"this goes on with it: {command}" in status.stdout
    assert document["groups"][0]["state"] == "closed"
    assert document["reshard"] == {"command": command}
    assert (
        "The reshard of shard group default to 40 shards is not finished (moving, begun" in unfinished.stdout
    )
    assert (other.code, other.stderr) == (
        1,
        f"Error: The reshard of shard group default to 40 shards is not finished. Finish it first: `{command}`.\n",
    )
    assert code == 69
    assert "The shard group default is closed: `entityq reshard` is under way" in refused
    assert "not accepted" in refused
    assert known[:2] == (0, "5"), "the key is known, and the reply is stored"

    finished = entityq.run("reshard", "--group", "default", "--shards", "40")
    assert (finished.code, finished.stdout) == (0, "Done: shard group default to 40 shards.\n"), (
        finished.stderr
    )
    assert "Going on with the reshard of shard group default to 40 shards." in finished.stderr
    worker.wait_for("shards=40")
    assert deposit(entityq, "a", "r3", "--wait")[:2] == (0, "10")
    assert deposit(entityq, "a", "r1", "--wait")[:2] == (0, "5")
    assert entityq.run("reshard", "--status", "-j").json() == {"unfinished": None}
    assert entityq.run("health").code == 0


def test_nothing_to_do_and_what_is_refused(entityq: CommandLine) -> None:
    assert deposit(entityq, "a", "r1")[0] == 0
    same = entityq.run("reshard", "--group", "default", "--shards", str(SHARDS))
    moved = entityq.run("reshard", "--type", "Account", "--group", "accounts", "-j")
    unknown = entityq.run("reshard", "--group", "slow", "--shards", "5")
    usage = [
        entityq.run("reshard", *arguments)
        for arguments in (
            (),
            ("--group", "default"),
            ("--type", "Account", "--shards", "5", "--group", "default"),
            ("--group", "default", "--shards", "0"),
        )
    ]

    assert (same.code, same.stdout) == (
        0,
        f"Nothing to do: shard group default to {SHARDS} shards was so already.\n",
    )
    assert moved.json() == {
        "reshard": {"group": "accounts", "shards": None, "type": "Account", "changed": True}
    }
    assert unknown.code == 1
    assert "has no shard group slow. It has accounts, default." in unknown.stderr
    assert [finished.code for finished in usage] == [2, 2, 2, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_before_anything_has_moved_it_opens_the_group_again(
    entityq: CommandLine, postgres_url: str, namespace: str, number: signal.Signals
) -> None:
    assert deposit(entityq, "a", "r1")[0] == 0
    with connected(postgres_url) as stranger:
        class_ = lock_class(SCHEMA, namespace, "shard", "default")
        stranger.execute("SELECT pg_advisory_lock(%s::integer, 3)", [class_])
        running = entityq.spawn("reshard", "--group", "default", "--shards", "5")
        running.wait_for(r"Waiting for the shards of tests \(1, pid")
        running.signal(number)
        finished = running.wait()

    assert finished.code == 1
    assert "Opened again: nothing was changed." in finished.stderr
    assert finished.stderr.endswith(
        "Error: It was stopped; `entityq reshard --status` tells how far it is.\n"
    )
    assert entityq.run("reshard", "--status").stdout == "No reshard is unfinished.\n"
    assert deposit(entityq, "a", "r2")[0] == 0


def test_without_redis_it_says_what_stays_there(entityq: CommandLine, namespace: str) -> None:
    assert deposit(entityq, "a", "r1")[0] == 0
    finished = entityq.run(
        "reshard", "--group", "default", "--shards", "5", env={"ENTITYQ_REDIS_URL": "redis://127.0.0.1:1/0"}
    )

    assert finished.code == 0
    assert "The old streams are still in Redis at redis://127.0.0.1:1/0" in finished.stderr
    assert f"eq:{{{namespace}}}:stream:default:*" in finished.stderr
