"""`entityq migrate`, and what its --print is good for."""

import subprocess
from pathlib import Path

import psycopg

from tests.cli.workers import BANK
from tests.support.processes import ENTITYQ, CommandLine
from tests.support.servers import SHARDS


def test_a_new_database_and_again(entityq: CommandLine, empty_postgres_url: str, namespace: str) -> None:
    env = {"ENTITYQ_POSTGRES_URL": empty_postgres_url}

    first = entityq.run("migrate", "-A", BANK, env=env)
    again = entityq.run("migrate", "-A", BANK, env=env)
    status = entityq.run("status", "-A", BANK, env=env)

    assert first.code == 0
    assert first.stdout.startswith("applied 0001_initial\n")
    assert f"Schema entityq is now up to date for the namespace {namespace}." in first.stdout
    assert (again.code, again.stdout) == (
        0,
        f"Schema entityq was already up to date for the namespace {namespace}.\n",
    )
    assert status.code == 0


def test_another_number_of_shards_is_no_way_to_change_it(entityq: CommandLine) -> None:
    finished = entityq.run("migrate", env={"ENTITYQ_SHARDS": "50"})
    same = entityq.run("migrate", env={"ENTITYQ_SHARDS": str(SHARDS)})

    assert finished.code == 0
    assert finished.stderr == (
        "ENTITYQ_SHARDS=50 changes nothing: this cluster was made with another number "
        f"({SHARDS}). `entityq reshard` changes it.\n"
    )
    assert (same.code, same.stderr) == (0, "")


def test_several_at_once(entityq: CommandLine, empty_postgres_url: str) -> None:
    env = {"ENTITYQ_POSTGRES_URL": empty_postgres_url}
    running = [entityq.spawn("migrate", env=env) for _ in range(4)]

    finished = [process.wait() for process in running]

    assert [process.code for process in finished] == [0] * 4
    assert sum("applied 0001" in process.stdout for process in finished) == 1


def test_the_printed_sql_is_the_same_schema(
    entityq: CommandLine, empty_postgres_url: str, tmp_path: Path
) -> None:
    printed = entityq.run(
        "migrate", "--print", env={"ENTITYQ_POSTGRES_URL": "postgresql://127.0.0.1:1/nothing"}
    )
    with psycopg.connect(empty_postgres_url, autocommit=True) as connection:
        connection.execute(printed.stdout.encode())

    finished = entityq.run("migrate", env={"ENTITYQ_POSTGRES_URL": empty_postgres_url})

    assert printed.code == 0 and printed.stderr == ""
    assert finished.code == 0
    assert "was already up to date" in finished.stdout


def test_without_a_namespace(entityq: CommandLine, tmp_path: Path) -> None:
    finished = entityq.run("migrate", env={"ENTITYQ_NAMESPACE": ""}, cwd=tmp_path)

    assert finished.code == 2
    assert finished.stderr == "Error: No namespace: give -A module:attribute, or set ENTITYQ_NAMESPACE.\n"


def test_a_closed_pipe_is_no_traceback(entityq: CommandLine) -> None:
    finished = subprocess.run(
        ["/bin/sh", "-c", f"{ENTITYQ} migrate --print | head -1"],
        env=entityq.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert finished.stdout == "BEGIN;\n"
    assert finished.stderr == ""
