"""What entityq refuses to start on (promise 8), as far as Postgres is concerned (see migrate, facts)."""

from entityq.config import masked_url
from entityq.errors import UnsafeConfiguration
from entityq.postgres.connect import Connection, fetch_value, open_unconfigured
from entityq.postgres.queries import load

_SQL = load("safety.sql")
_DESCRIBE_SERVER, _DESCRIBE_DATABASE = _SQL["describe_server"], _SQL["describe_database"]
_MISSING_RIGHTS, _OWN_PID = _SQL["missing_rights"], _SQL["own_pid"]

OLDEST_SERVER = 14


async def check_server(connection: Connection) -> None:
    """Raises UnsafeConfiguration for a server that is too old, cannot write, or may lose commits."""
    for version, in_recovery, synchronous_commit in await (
        await connection.execute(_DESCRIBE_SERVER)
    ).fetchall():
        refuse_server(
            version=version // 10_000, in_recovery=in_recovery, synchronous_commit=synchronous_commit
        )


def refuse_server(*, version: int, in_recovery: bool, synchronous_commit: str) -> None:
    """The decision of `check_server`."""
    if version < OLDEST_SERVER:
        raise UnsafeConfiguration(
            f"The server is PostgreSQL {version}.", advice=f"Use PostgreSQL {OLDEST_SERVER} or later."
        )
    if in_recovery:
        raise UnsafeConfiguration(
            "The Postgres server is a hot standby: it cannot store anything.",
            advice="Point ENTITYQ_POSTGRES_URL at the primary (target_session_attrs=read-write chooses it).",
        )
    if synchronous_commit == "off":
        raise UnsafeConfiguration(
            "synchronous_commit is off: accepted requests could be lost with the server.",
            advice="Set it to on, for the role or the database of entityq at least.",
        )


async def check_rights(connection: Connection, schema: str) -> None:
    """Raises UnsafeConfiguration where the role lacks a right that a runner needs."""
    missing = [row[0] for row in await (await connection.execute(_MISSING_RIGHTS)).fetchall()]
    if missing:
        raise UnsafeConfiguration(
            f"The role of entityq lacks rights in schema {schema}: {', '.join(missing)}.",
            advice=f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} and "
            f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} and "
            f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} to it.",
        )


async def check_same_database(connection: Connection, lease: Connection) -> None:
    """Raises UnsafeConfiguration where lease_url leads to another database than postgres_url."""
    if await fetch_value(connection, _DESCRIBE_DATABASE) != await fetch_value(lease, _DESCRIBE_DATABASE):
        raise UnsafeConfiguration(
            "lease_url and postgres_url lead to different databases.",
            advice="ENTITYQ_LEASE_URL is another way to the same database, without a pooler.",
        )


async def refuse_pooler(url: str, *, setting: str, attempts: int = 3) -> None:
    """Raises UnsafeConfiguration for a transaction pooler: locks and settings would be somebody else's.

    To be asked first: other connections would leave their settings in the pooler's sessions. `setting` is
    the one that the URL came from. A pooler in session mode passes: there, a client has a session of its own.
    """
    first = await open_unconfigured(url)
    try:
        pid = await fetch_value(first, _OWN_PID)
        for _ in range(attempts):
            second = await open_unconfigured(url)
            try:
                other = await fetch_value(second, _OWN_PID)
            finally:
                await second.close()
            # Twice: one that gives its sessions out in turn could come back to the same one by parity.
            again = {await fetch_value(first, _OWN_PID), await fetch_value(first, _OWN_PID)}
            if other == pid or again != {pid}:
                raise UnsafeConfiguration(
                    f"There is a transaction pooler at {masked_url(url)} ({setting}): "
                    "two connections share one session of Postgres.",
                    advice="Use the server's own address, or a pooler in session mode.",
                )
    finally:
        await first.close()
