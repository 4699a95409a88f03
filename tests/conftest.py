"""Real servers for the tests: one pair per session, a database and an empty Valkey for each test."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from entityq.embedded import Embedded, start_temporary
from tests.support.processes import CommandLine
from tests.support.servers import (
    Connection,
    PrivateServers,
    child_processes,
    connected,
    create_database,
    database_url,
    drop_database,
    flush,
    left_behind,
    migrate_database,
)

TEMPLATE = "entityq_template"


@pytest.fixture(scope="session")
def servers() -> Iterator[Embedded]:
    """This session's PostgreSQL and Valkey; they end with it, also when it is killed."""
    with start_temporary() as embedded:
        yield embedded


@pytest.fixture(scope="session")
def server(servers: Embedded) -> Iterator[Connection]:
    """A superuser's connection to PostgreSQL, in autocommit, for whatever a test does from outside."""
    with connected(servers.postgres_url) as connection:
        yield connection


@pytest.fixture(scope="session")
def template(servers: Embedded, server: Connection) -> str:
    """The database that the tests' own are copied from: migrated."""
    create_database(server, TEMPLATE, "template1")
    migrate_database(database_url(servers.postgres_url, TEMPLATE), "template")
    return TEMPLATE


@pytest.fixture
def postgres_url(servers: Embedded, server: Connection, template: str, namespace: str) -> Iterator[str]:
    """A database of this test, migrated, with the cluster of its namespace (schema `entityq`, 16 shards).

    At its end no session and no lock of entityq may be left in it.
    """
    name = f"test_{secrets.token_hex(4)}"
    url = database_url(servers.postgres_url, name)
    create_database(server, name, template)
    try:
        migrate_database(url, namespace)
        yield url
        left = left_behind(server, name)
    finally:
        drop_database(server, name)
    assert not left, "left behind in Postgres: " + "; ".join(left)


@pytest.fixture
def empty_postgres_url(servers: Embedded, server: Connection) -> Iterator[str]:
    """A database of this test that was never migrated."""
    name = f"empty_{secrets.token_hex(4)}"
    create_database(server, name, "template1")
    try:
        yield database_url(servers.postgres_url, name)
        left = left_behind(server, name)
    finally:
        drop_database(server, name)
    assert not left, "left behind in Postgres: " + "; ".join(left)


@pytest.fixture
def redis_url(servers: Embedded) -> Iterator[str]:
    """The session's Valkey, empty. A test may flush it; one that kills it takes `private_servers`."""
    flush(servers.redis_url)
    yield servers.redis_url
    flush(servers.redis_url)


@pytest.fixture
def namespace() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def private_servers(namespace: str) -> Iterator[PrivateServers]:
    """A PostgreSQL and a Valkey that this test may kill, freeze and restart; migrated, as `postgres_url`."""
    with start_temporary() as embedded:
        migrate_database(embedded.postgres_url, namespace)
        private = PrivateServers(embedded)
        try:
            yield private
        finally:
            private.thaw()


@pytest.fixture
def entityq(postgres_url: str, redis_url: str, namespace: str, tmp_path: Path) -> Iterator[CommandLine]:
    """The command on this test's servers: `entityq.run("status", "-j")`, `entityq.spawn("worker")`."""
    configuration = {
        "ENTITYQ_POSTGRES_URL": postgres_url,
        "ENTITYQ_REDIS_URL": redis_url,
        "ENTITYQ_NAMESPACE": namespace,
    }
    with CommandLine(configuration, tmp_path) as command_line:
        yield command_line


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before all others, so checked after all others: no child process, no task on the loop."""
    if request.node.get_closest_marker("asyncio") is not None:
        request.getfixturevalue("_no_task_left")
    before = child_processes()
    yield
    left = child_processes() - before
    assert not left, f"child processes left behind: {left}"


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        # One that was cancelled in the test's last step is still ending.
        _, tasks = await asyncio.wait(tasks, timeout=0.2)
    assert not tasks, f"asyncio tasks left behind: {[task.get_name() for task in tasks]}"
