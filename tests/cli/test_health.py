"""`entityq health`, which container health checks call."""

from typing import Any

from tests.cli.workers import start_worker
from tests.support.processes import CommandLine, Finished


def checks(finished: Finished) -> dict[str, bool]:
    document: dict[str, Any] = finished.json()
    assert document["healthy"] is (finished.code == 0)
    return {check["name"]: check["ok"] for check in document["checks"]}


def test_all_is_well(entityq: CommandLine) -> None:
    start_worker(entityq)

    document = entityq.run("health", "-j")
    text = entityq.run("health")

    assert document.code == 0
    assert checks(document) == {
        "postgres": True,
        "schema": True,
        "runners": True,
        "shards": True,
        "redis": True,
    }
    assert text.code == 0
    assert "FAILED" not in text.stdout


def test_without_a_runner(entityq: CommandLine, namespace: str) -> None:
    finished = entityq.run("health", "-j")

    assert finished.code == 69
    assert checks(finished) == {
        "postgres": True,
        "schema": True,
        "runners": False,
        "shards": True,
        "redis": True,
    }
    assert f"no live runner in the namespace {namespace}" in finished.stdout


def test_without_a_schema(entityq: CommandLine, empty_postgres_url: str) -> None:
    finished = entityq.run("health", "-j", env={"ENTITYQ_POSTGRES_URL": empty_postgres_url})

    assert finished.code == 69
    assert checks(finished) == {"postgres": True, "schema": False, "redis": True}


def test_without_postgres(entityq: CommandLine) -> None:
    env = {"ENTITYQ_POSTGRES_URL": "postgresql://nobody:secret@127.0.0.1:1/nothing"}

    finished = entityq.run("health", "-j", env=env)

    assert finished.code == 69
    assert checks(finished) == {"postgres": False, "redis": True}
    assert "secret" not in finished.stdout + finished.stderr


def test_without_redis(entityq: CommandLine) -> None:
    finished = entityq.run("health", env={"ENTITYQ_REDIS_URL": "redis://:secret@127.0.0.1:1/0"})

    assert finished.code == 69
    assert "secret" not in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr


def test_it_does_not_import_the_app(entityq: CommandLine) -> None:
    finished = entityq.run("health", env={"ENTITYQ_APP": "nowhere:app"})

    assert finished.code == 69
    assert "nowhere" not in finished.stdout + finished.stderr


def test_servers_that_are_not_configured(entityq: CommandLine) -> None:
    env = {"ENTITYQ_POSTGRES_URL": "", "ENTITYQ_REDIS_URL": "", "ENTITYQ_EMBEDDED": "0"}

    finished = entityq.run("health", env=env)

    assert finished.code == 1
    assert finished.stderr.startswith("Error: No servers are configured. Set ENTITYQ_POSTGRES_URL")
