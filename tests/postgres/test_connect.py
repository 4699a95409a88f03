import asyncio
import socket
import traceback

import psycopg
import pytest
from psycopg import AsyncConnection, OperationalError
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import LockNotAvailable
from psycopg.rows import TupleRow

from entityq.errors import PersistenceError, UnsafeConfiguration
from entityq.postgres.connect import (
    connect,
    connect_lease,
    connection_parameters,
    fetch_value,
    open_pool,
    pooled,
    session_settings,
)
from tests.support.fault_proxy import fault_proxy

CANARY = "s3cr3t-canary"
NOBODY = f"postgresql://user:{CANARY}@127.0.0.1:1/bank"


async def setting(connection: AsyncConnection[TupleRow], name: str) -> object:
    return await fetch_value(connection, b"SELECT current_setting(%(name)s)", {"name": name})


async def test_a_session_has_our_settings_whatever_the_role_says(postgres_url: str) -> None:
    name = conninfo_to_dict(postgres_url)["dbname"]
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        for default in ("enable_seqscan = on", "lock_timeout = '1h'", "default_transaction_read_only = on"):
            owner.execute(f'ALTER DATABASE "{name}" SET {default}'.encode())
    connection = await connect(postgres_url, schema="entityq", application_name="entityq:7")
    async with connection:
        assert await setting(connection, "default_transaction_read_only") == "off"
        assert await setting(connection, "lock_timeout") == "100ms"
        for key, value in session_settings("entityq").items():
            shown = await setting(connection, key)
            assert str(shown).lower() == value.lower()
        assert await setting(connection, "application_name") == "entityq:7"
        assert connection.autocommit


async def test_tables_are_found_in_the_schema_and_not_in_pg_temp(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(
            'CREATE SCHEMA "our""s"; CREATE TABLE "our""s".place (at text);'
            """ INSERT INTO "our""s".place VALUES ('here')"""
        )
    async with await connect(postgres_url, schema='our"s') as connection:
        await connection.execute("CREATE TEMPORARY TABLE place (at text)")
        assert await fetch_value(connection, b"SELECT at FROM place") == "here"


async def test_waiting_for_a_lock_is_short(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(1, 1)")
        async with await connect(postgres_url, schema="entityq") as connection:
            with pytest.raises(LockNotAvailable):
                await connection.execute("SELECT pg_advisory_lock(1, 1)")


async def test_statements_are_prepared_at_their_first_use(postgres_url: str) -> None:
    async with await connect(postgres_url, schema="entityq") as connection:
        await connection.execute("SELECT %(x)s::bigint", {"x": 1})
        assert await fetch_value(connection, b"SELECT count(*) FROM pg_prepared_statements") == 1


async def test_the_lease_connection(postgres_url: str) -> None:
    async with await connect_lease(
        postgres_url, schema="entityq", application_name="entityq:8"
    ) as connection:
        assert await setting(connection, "client_connection_check_interval") == "2s"
        assert await setting(connection, "idle_session_timeout") == "0"
        assert await setting(connection, "lock_timeout") == "100ms"
        assert await setting(connection, "statement_timeout") == "0"
        assert await setting(connection, "application_name") == "entityq:8"


async def test_the_keepalives_of_the_lease_connection_over_tcp(
    tcp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with await connect_lease(tcp_url, schema="entityq") as connection:
        found = [
            await setting(connection, f"tcp_{name}")
            for name in ("keepalives_idle", "keepalives_interval", "keepalives_count", "user_timeout")
        ]
        assert found == ["5", "2", "3", "10000"]
        assert await setting(connection, "client_connection_check_interval") == "2s"
    assert not caplog.records


async def test_keepalives_that_the_server_refuses_or_does_not_know_are_named(
    tcp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are set all the same, and so is what is no keepalive."""
    wanted = {"client_connection_check_interval": "never", "tcp_no_such": "1", "tcp_keepalives_idle": "7"}
    async with await connect_lease(tcp_url, schema="entityq", keepalives=wanted) as connection:
        assert await setting(connection, "tcp_keepalives_idle") == "7"
        assert await setting(connection, "client_connection_check_interval") == "0"
        assert await setting(connection, "lock_timeout") == "100ms"
    assert (
        "has client_connection_check_interval=0 instead of never, tcp_no_such=None instead of 1:"
        in caplog.text
    )


async def test_keepalives_that_the_server_ignores_are_named(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy in front of the server's Unix socket: on that one, there are none."""
    async with fault_proxy(postgres_url) as proxy:
        async with await connect_lease(proxy.url, schema="entityq") as connection:
            assert await setting(connection, "tcp_user_timeout") == "0"
        assert "tcp_user_timeout=0 instead of 10000" in caplog.text
        assert "client_connection_check_interval" not in caplog.text
    caplog.clear()
    async with await connect_lease(postgres_url, schema="entityq"):
        assert not caplog.records


async def test_the_pool_configures_each_connection_and_waits_when_all_are_in_use(postgres_url: str) -> None:
    async with open_pool(postgres_url, schema="entityq", size=2, deadline=5) as pool:
        async with pool.connection() as first, pool.connection() as second:
            assert first is not second
            assert (
                await setting(first, "search_path")
                == await setting(second, "search_path")
                == '"entityq", pg_temp'
            )
            third = asyncio.create_task(pool.getconn(), name="third")
            assert not (await asyncio.wait([third], timeout=0.05))[0]
        await pool.putconn(await third)


async def test_the_pool_recovers_when_its_connections_were_ended(postgres_url: str) -> None:
    async with open_pool(postgres_url, schema="entityq", size=1, deadline=5) as pool:
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
        with psycopg.connect(postgres_url) as killer:
            killer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(psycopg.OperationalError):
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
        async with pool.connection() as connection:
            assert await fetch_value(connection, b"SELECT 1") == 1


@pytest.mark.parametrize("lease", [False, True])
async def test_an_unreachable_server_is_named_without_its_password(lease: bool) -> None:
    with pytest.raises(
        PersistenceError,
        match=r"Cannot connect to Postgres at postgresql://\*\*\*@127.0.0.1:1/bank: .*refused",
    ) as caught:
        await (connect_lease if lease else connect)(NOBODY, schema="entityq")
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_a_pool_of_an_unreachable_server_says_why() -> None:
    with pytest.raises(PersistenceError, match="refused"):
        async with open_pool(NOBODY, schema="entityq"):
            pass


async def test_a_server_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(PersistenceError, match="no connection within"):
            await connect(f"postgresql://127.0.0.1:{port}/bank", schema="entityq", deadline=0.2)


@pytest.mark.parametrize(
    "bad",
    [
        f"postgresql://u:{CANARY}@h:port/d",
        f"postgresql://u:{CANARY}/x@h/d",
        f"postgresql://h/d?pasword={CANARY}",
    ],
)
def test_a_url_that_libpq_cannot_read_is_refused_without_its_password(bad: str) -> None:
    with pytest.raises(UnsafeConfiguration, match="is not a Postgres URL") as caught:
        connection_parameters(bad, "entityq")
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_parameters_of_the_url_win_over_ours_but_not_over_the_name() -> None:
    given = conninfo_to_dict(
        connection_parameters("postgresql://h/d?keepalives_idle=9&application_name=x", "entityq:1")
    )
    assert (given["keepalives_idle"], given["keepalives"], given["application_name"]) == (
        "9",
        "1",
        "entityq:1",
    )


async def test_a_statement_of_the_pool_that_is_cut_off_ends_and_so_does_its_connection(
    postgres_url: str,
) -> None:
    """Half-open TCP behind a proxy that goes on acknowledging: neither end hears anything."""
    async with fault_proxy(postgres_url) as proxy, open_pool(proxy.url, schema="entityq", size=1) as pool:
        async with pooled(pool) as connection:
            before = await fetch_value(connection, b"SELECT pg_backend_pid()")
        proxy.black_hole()
        proxy.heal(existing=False)
        with pytest.raises(OperationalError):
            async with asyncio.timeout(10), pooled(pool, 0.3) as connection:
                await fetch_value(connection, b"SELECT 1")
        async with pooled(pool) as connection:
            assert await fetch_value(connection, b"SELECT pg_backend_pid()") != before
