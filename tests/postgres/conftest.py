"""Servers and roles in states that the session's own must not be in."""

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from tests.support.pgbouncer import listen_on_tcp
from tests.support.servers import Connection, PrivateServers


@pytest.fixture
def tcp_url(private_servers: PrivateServers) -> str:
    return listen_on_tcp(private_servers)


@pytest.fixture
def standby_url(private_servers: PrivateServers) -> str:
    """A server in recovery, which answers queries: a standby that has lost its primary."""
    with psycopg.connect(private_servers.postgres_url) as owner:
        row = owner.execute("SHOW data_directory").fetchone()
        assert row is not None
    private_servers.postgres.stop()
    Path(str(row[0]), "standby.signal").touch()
    private_servers.postgres.start()
    return private_servers.postgres_url


@pytest.fixture
def reader(server: Connection, empty_postgres_url: str) -> Iterator[str]:
    """`empty_postgres_url` as a role of this test, "reader_...", that owns nothing and may do nothing."""
    role = Identifier(f"reader_{secrets.token_hex(4)}")
    server.execute(SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        yield make_conninfo(empty_postgres_url, user=role.as_string(None).strip('"'))
    finally:
        with psycopg.connect(empty_postgres_url, autocommit=True) as owner:
            owner.execute(SQL("DROP OWNED BY {}").format(role))
        server.execute(SQL("DROP ROLE {}").format(role))


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """For sockets, whose path may have about 100 characters; open to other users."""
    with tempfile.TemporaryDirectory(prefix="entityq-", dir="/tmp") as directory:
        yield Path(directory)
