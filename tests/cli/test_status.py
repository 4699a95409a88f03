"""`entityq status`: who runs, and what waits."""

import asyncio
import re
from pathlib import Path

from entityq.address import lock_class
from entityq.postgres.connect import connect
from tests.cli.workers import BANK, start_worker
from tests.support.leases import open_cluster
from tests.support.processes import CommandLine
from tests.support.servers import SCHEMA, SHARDS, connected
from tests.support.waiting import eventually


def test_without_runners(entityq: CommandLine, namespace: str) -> None:
    for account in ("a", "b"):
        entityq.run("send", "-A", BANK, f"Account/{account}", "deposit", "-a", '[5, "r1"]')

    document = entityq.run("status", "-j")
    text = entityq.run("status")

    assert document.code == 0
    (group,) = document.json()["groups"]
    assert document.json()["namespace"] == namespace
    assert document.json()["runners"] == []
    assert (group["name"], group["shards"], group["held"], group["pending"]) == ("default", SHARDS, 0, 2)
    assert 0 < group["oldest_seconds"] < 60
    assert re.search(rf"^default +open +{SHARDS} +0 +2 +\d+\.\d s +0$", text.stdout, re.MULTILINE)


def test_with_runners(entityq: CommandLine) -> None:
    start_worker(entityq, "-n", "runner-%p", runners=2)

    def shared() -> bool:
        held = [runner["shards"] for runner in entityq.run("status", "-j").json()["runners"]]
        return len(held) == 2 and all(held) and sum(shards["default"] for shards in held) == SHARDS

    eventually(shared, 15, "shards held by both runners")
    document = entityq.run("status", "-j").json()
    text = entityq.run("status", "-A", BANK)

    assert {runner["name"] for runner in document["runners"]} == {"runner-1", "runner-2"}
    for runner in document["runners"]:
        assert runner["incarnation"].isdecimal()
        assert (runner["state"], runner["groups"]) == ("serving", ["default"])
        assert runner["types"] == ["Account", "add"]
        assert runner["joined_at"].endswith("Z")
    (group,) = document["groups"]
    assert (group["held"], group["pending"], group["oldest_seconds"]) == (SHARDS, 0, None)
    assert re.search(r"^runner-1 +\d+ +serving +default +\d+ +\d", text.stdout, re.MULTILINE)
    assert "\x1b" not in text.stdout


async def test_an_unhealthy_runner(entityq: CommandLine, postgres_url: str, namespace: str) -> None:
    async with open_cluster(postgres_url, namespace) as cluster:
        await cluster.session(name="sick")
        async with await connect(postgres_url, schema=SCHEMA) as connection:
            await connection.execute("UPDATE runner SET healthy = false")
        document = await asyncio.to_thread(entityq.run, "status", "-j")
        text = await asyncio.to_thread(entityq.run, "status")

    (runner,) = document.json()["runners"]
    assert (runner["name"], runner["state"]) == ("sick", "unhealthy")
    assert re.search(r"^sick +\d+ +unhealthy +default", text.stdout, re.MULTILINE)


def test_an_unreachable_server(entityq: CommandLine) -> None:
    url = "postgresql://nobody:secret@127.0.0.1:1/nothing"

    finished = entityq.run("status", "-j", env={"ENTITYQ_POSTGRES_URL": url})

    assert finished.code == 69
    assert finished.json()["error"]["type"] == "PersistenceError"
    assert "secret" not in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr


def test_several_namespaces_and_none_chosen(entityq: CommandLine, namespace: str, tmp_path: Path) -> None:
    # The template of this database has a cluster too.
    finished = entityq.run("status", env={"ENTITYQ_NAMESPACE": ""}, cwd=tmp_path)

    assert finished.code == 2
    assert f"has the namespaces template, {namespace}: set ENTITYQ_NAMESPACE." in finished.stderr


def test_who_holds_shards_and_is_no_runner(entityq: CommandLine, postgres_url: str, namespace: str) -> None:
    entityq.run("send", "-A", BANK, "Account/a", "deposit", "-a", '[5, "r1"]')
    with connected(postgres_url) as stranger:
        class_ = lock_class("entityq", namespace, "shard", "default")
        stranger.execute("SELECT pg_advisory_lock(%s, 3)", [class_])

        document = entityq.run("status", "-j").json()
        text = entityq.run("status").stdout

        pid = stranger.info.backend_pid
        assert document["strangers"] == [{"pid": pid, "application_name": "tests", "shards": {"default": 1}}]
        assert re.search(rf"No runner.*^{pid} +tests +1$", text, re.MULTILINE | re.DOTALL)
