import shutil
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from entityq.errors import UnsafeConfiguration
from entityq.postgres.connect import connect
from entityq.postgres.facts import register_types
from entityq.postgres.migrate import migrate
from entityq.postgres.safety import (
    check_rights,
    check_same_database,
    check_server,
    refuse_pooler,
    refuse_server,
)
from tests.support.pgbouncer import pgbouncer

SCHEMA = "entityq"


async def test_the_server_of_the_tests_is_good(postgres_url: str) -> None:
    async with await connect(postgres_url, schema=SCHEMA) as connection:
        await check_server(connection)


async def test_p8_synchronous_commit_off_is_refused(empty_postgres_url: str) -> None:
    name = Identifier(str(conninfo_to_dict(empty_postgres_url)["dbname"]))
    with psycopg.connect(empty_postgres_url, autocommit=True) as owner:
        owner.execute(SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
    async with await connect(empty_postgres_url, schema=SCHEMA) as connection:
        with pytest.raises(UnsafeConfiguration, match=r"synchronous_commit is off.*Set it to on"):
            await check_server(connection)


async def test_p8_a_hot_standby_is_refused(standby_url: str) -> None:
    async with await connect(standby_url, schema=SCHEMA) as connection:
        with pytest.raises(UnsafeConfiguration, match=r"hot standby.*at the primary"):
            await check_server(connection)


def test_p8_an_old_server_is_refused() -> None:
    # The package index has no older server: the decision, not the real thing.
    refuse_server(version=14, in_recovery=False, synchronous_commit="on")
    with pytest.raises(UnsafeConfiguration, match=r"PostgreSQL 13.*14 or later"):
        refuse_server(version=13, in_recovery=False, synchronous_commit="on")


async def test_p8_missing_rights_are_named_and_the_advice_helps(empty_postgres_url: str, reader: str) -> None:
    role = Identifier(str(conninfo_to_dict(reader)["user"]))
    async with await connect(empty_postgres_url, schema=SCHEMA) as connection:
        await migrate(connection, schema=SCHEMA, namespace="bank", shards=3)
        await check_rights(connection, SCHEMA)
        await connection.execute(SQL("GRANT USAGE ON SCHEMA entityq TO {}").format(role))
        await connection.execute(SQL("GRANT SELECT ON ALL TABLES IN SCHEMA entityq TO {}").format(role))
    async with await connect(reader, schema=SCHEMA) as connection:
        with pytest.raises(
            UnsafeConfiguration, match=r"INSERT on outbox.*USAGE on outbox_seq.*GRANT"
        ) as caught:
            await check_rights(connection, SCHEMA)
    assert "on migration" not in caught.value.what
    with psycopg.connect(empty_postgres_url, autocommit=True) as owner:
        for grant in caught.value.advice.removesuffix(" to it.").split(" and "):
            owner.execute(f"{grant} TO {role.as_string(None)}".encode())
    async with await connect(reader, schema=SCHEMA) as connection:
        await check_rights(connection, SCHEMA)
        assert (await register_types(connection, "bank", {"Account": "default"})).types == {
            "Account": "default"
        }


async def test_p8_leases_in_another_database_are_refused(postgres_url: str, empty_postgres_url: str) -> None:
    async with (
        await connect(postgres_url, schema=SCHEMA) as connection,
        await connect(postgres_url, schema=SCHEMA) as same,
        await connect(empty_postgres_url, schema=SCHEMA) as other,
    ):
        await check_same_database(connection, same)
        with pytest.raises(UnsafeConfiguration, match="lead to different databases"):
            await check_same_database(connection, other)


async def test_a_direct_connection_passes(postgres_url: str) -> None:
    await refuse_pooler(postgres_url, setting="lease_url")


def fill(url: str, sessions: int) -> None:
    """Leave the pooler with that many sessions of the server: so many transactions at once."""
    with ExitStack() as stack:
        for _ in range(sessions):
            stack.enter_context(psycopg.connect(url)).execute("SELECT 1")


needs_pgbouncer = pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")


@needs_pgbouncer
@pytest.mark.parametrize("round_robin", [0, 1])
async def test_p8_a_transaction_pooler_is_refused(
    tcp_url: str, short_directory: Path, round_robin: int
) -> None:
    expected = r"transaction pooler at .* \(lease_url\).*server's own address"
    with pgbouncer(tcp_url, short_directory, mode="transaction", round_robin=round_robin) as url:
        for sessions in range(1, 6):
            fill(url, sessions)
            with pytest.raises(UnsafeConfiguration, match=expected):
                await refuse_pooler(url, setting="lease_url")


@needs_pgbouncer
async def test_a_pooler_in_session_mode_passes(tcp_url: str, short_directory: Path) -> None:
    with pgbouncer(tcp_url, short_directory, mode="session") as url:
        fill(url, 3)
        await refuse_pooler(url, setting="lease_url")
