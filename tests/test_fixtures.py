"""What the fixtures promise to the other tests."""

from urllib.parse import urlsplit

import psycopg

from tests.support.processes import CommandLine
from tests.support.servers import Connection, PrivateServers, connected, left_behind


def test_a_database_is_migrated_and_has_the_cluster_of_the_namespace(
    postgres_url: str, namespace: str
) -> None:
    with connected(postgres_url) as connection:
        clusters = connection.execute("SELECT namespace FROM entityq.cluster").fetchall()
    assert (namespace,) in clusters


def test_sessions_and_locks_of_entityq_are_found(postgres_url: str, server: Connection) -> None:
    database = urlsplit(postgres_url).path.strip("/")
    assert left_behind(server, database) == []
    with psycopg.connect(postgres_url, application_name="entityq:1", autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(1, 2)")
        left = left_behind(server, database, seconds=0)
    assert [line.split()[0] for line in left] == ["session", "advisory"]


def test_private_servers_are_killed_frozen_and_started_again(private_servers: PrivateServers) -> None:
    private_servers.valkey.kill()
    private_servers.postgres.kill()
    assert not private_servers.valkey.is_alive()
    assert not private_servers.postgres.is_alive()
    private_servers.valkey.start()
    private_servers.postgres.start()
    private_servers.flush()
    with connected(private_servers.postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM entityq.cluster").fetchone() == (1,)
    private_servers.postgres.freeze()
    private_servers.valkey.freeze()


def test_a_process_is_captured(entityq: CommandLine) -> None:
    running = entityq.spawn_program(["sh", "-c", "echo out; echo err >&2; echo $ENTITYQ_NAMESPACE; exit 3"])
    assert running.wait_for("err")
    finished = running.wait()
    assert (finished.code, finished.stderr) == (3, "err\n")
    assert finished.stdout == f"out\n{entityq.environment['ENTITYQ_NAMESPACE']}\n"
