import asyncio
from datetime import UTC, datetime

import psycopg
import pytest

from entityq.errors import PersistenceError, UnsafeConfiguration
from entityq.postgres.connect import connect, fetch_value
from entityq.postgres.facts import load_facts
from entityq.postgres.migrate import (
    MIGRATIONS,
    OLDEST_SCHEMA,
    Applied,
    Migration,
    applied_migrations,
    migrate,
    print_sql,
    refuse_range,
    require_schema,
)

NEWEST = MIGRATIONS[-1].number
# The real migrations come first: the cluster's row needs their tables.
EXPAND = Migration(
    NEWEST + 1, "expand", b"-- oldest code: 1\nALTER TABLE outbox ADD COLUMN y text DEFAULT '5%s';"
)
BROKEN = Migration(NEWEST + 1, "broken", b"CREATE TABLE two (x integer); SELECT 1/0;")


async def run(url: str, *more: Migration, schema: str = "entityq", wait: float = 5) -> list[int]:
    """The numbers of what was applied."""
    async with await connect(url, schema=schema) as connection:
        migrations = (*MIGRATIONS, *more)
        done = await migrate(
            connection, schema=schema, namespace="bank", shards=10, migrations=migrations, wait=wait
        )
    return [migration.number for migration in done]


def test_the_packaged_migrations_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in MIGRATIONS] == list(range(1, NEWEST + 1))


async def test_an_empty_database_gets_everything_and_a_second_run_nothing(empty_postgres_url: str) -> None:
    assert await run(empty_postgres_url) == list(range(1, NEWEST + 1))
    assert await run(empty_postgres_url) == []
    async with await connect(empty_postgres_url, schema="entityq") as connection:
        assert [row.number for row in await applied_migrations(connection)] == list(range(1, NEWEST + 1))
        assert (await load_facts(connection, "bank")).default_shards == 10
        await require_schema(connection, "entityq")


async def test_later_migrations_are_applied_to_what_is_there(empty_postgres_url: str) -> None:
    await run(empty_postgres_url)
    assert await run(empty_postgres_url, EXPAND) == [EXPAND.number]


async def test_two_schemas_in_one_database(empty_postgres_url: str) -> None:
    await run(empty_postgres_url)
    assert await run(empty_postgres_url, schema="other") == list(range(1, NEWEST + 1))
    with psycopg.connect(empty_postgres_url) as owner:
        tables = owner.execute(
            "SELECT schemaname FROM pg_tables WHERE tablename = 'outbox' ORDER BY 1"
        ).fetchall()
    assert tables == [("entityq",), ("other",)]


async def test_of_two_at_once_one_waits_and_finds_it_done(empty_postgres_url: str) -> None:
    slow = Migration(NEWEST + 1, "slow", b"SELECT pg_sleep(0.3); CREATE TABLE two (x integer);")
    done = await asyncio.gather(*(run(empty_postgres_url, slow) for _ in range(3)))
    assert sorted(number for numbers in done for number in numbers) == list(range(1, NEWEST + 2))


async def test_waiting_for_another_one_ends(empty_postgres_url: str) -> None:
    await run(empty_postgres_url)
    statement = print_sql("entityq").split(";")[1]
    assert "pg_advisory_xact_lock" in statement
    with psycopg.connect(empty_postgres_url) as other:
        other.execute(statement.encode())
        with pytest.raises(PersistenceError, match="locked"):
            await run(empty_postgres_url, wait=0.1)


async def test_a_failing_migration_leaves_nothing_behind(empty_postgres_url: str) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await run(empty_postgres_url, BROKEN)
    async with await connect(empty_postgres_url, schema="entityq") as connection:
        assert await fetch_value(connection, b"SELECT to_regclass('two')") is None
        assert len(await applied_migrations(connection)) == NEWEST


async def test_an_applied_migration_that_was_edited_is_refused(empty_postgres_url: str) -> None:
    await run(empty_postgres_url, EXPAND)
    edited = Migration(EXPAND.number, EXPAND.name, EXPAND.sql + b" -- better")
    with pytest.raises(
        UnsafeConfiguration, match=f"Migration {edited} was applied on .* with other contents"
    ):
        await run(empty_postgres_url, edited)


async def test_an_existing_cluster_keeps_its_shard_count(empty_postgres_url: str) -> None:
    await run(empty_postgres_url)
    async with await connect(empty_postgres_url, schema="entityq") as connection:
        before = await load_facts(connection, "bank")
        await migrate(connection, schema="entityq", namespace="bank", shards=99)
        assert await load_facts(connection, "bank") == before


async def test_p8_a_role_that_may_not_create_is_told_so(empty_postgres_url: str, reader: str) -> None:
    with pytest.raises(
        UnsafeConfiguration, match=r"cannot be migrated by this role: .*denied.* Grant CREATE"
    ):
        await run(reader)


async def test_the_printed_sql_does_what_migrate_does(empty_postgres_url: str) -> None:
    execute(empty_postgres_url, print_sql("entityq", (*MIGRATIONS, EXPAND)))
    assert await run(empty_postgres_url, EXPAND) == []


async def test_the_printed_sql_of_later_migrations_only(empty_postgres_url: str) -> None:
    await run(empty_postgres_url)
    execute(empty_postgres_url, print_sql("entityq", [EXPAND]))
    assert await run(empty_postgres_url, EXPAND) == []


def execute(url: str, script: str) -> None:
    """As psql sends a file without parameters, but all at once."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(script.encode())


async def test_p8_a_database_without_our_tables_is_refused(empty_postgres_url: str) -> None:
    async with await connect(empty_postgres_url, schema="entityq") as connection:
        with pytest.raises(UnsafeConfiguration, match=r"no entityq tables.*Run `entityq migrate`"):
            await require_schema(connection, "entityq")


async def test_p8_a_schema_that_needs_newer_code_is_refused(empty_postgres_url: str) -> None:
    contract = Migration(NEWEST + 2, "contract", b"ALTER TABLE outbox DROP COLUMN y;")
    await run(empty_postgres_url, EXPAND)
    async with await connect(empty_postgres_url, schema="entityq") as connection:
        await require_schema(connection, "entityq")
    await run(empty_postgres_url, EXPAND, contract)
    async with await connect(empty_postgres_url, schema="entityq") as connection:
        with pytest.raises(UnsafeConfiguration, match=f"needs code of migration {NEWEST + 2}.*newer entityq"):
            await require_schema(connection, "entityq")


def applied(number: int, oldest_code: int) -> Applied:
    return Applied(number, "x", "", oldest_code, datetime.now(UTC))


def test_the_range_of_schemas() -> None:
    refuse_range("entityq", [applied(1, 1), applied(OLDEST_SCHEMA, 1)], newest_code=1)
    with pytest.raises(UnsafeConfiguration, match="at migration 0"):
        refuse_range("entityq", [], newest_code=1)
    with pytest.raises(
        UnsafeConfiguration, match="needs code of migration 2 or later; this code is of migration 1"
    ):
        refuse_range("entityq", [applied(1, 1), applied(2, 2), applied(OLDEST_SCHEMA, 1)], newest_code=1)
