"""One connection to Postgres for a command that reads, and the namespace that it is about."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from entityq.config import Settings
from entityq.postgres.connect import Connection, connect
from entityq.postgres.migrate import require_schema
from entityq.postgres.overview import read_namespaces
from entityq_cli.exit_code import CommandError, ExitCode, usage_error


@asynccontextmanager
async def open_database(url: str, schema: str) -> AsyncGenerator[Connection, None]:
    """Raises UnsafeConfiguration for a schema that this code cannot run on, PersistenceError."""
    async with await connect(url, schema=schema, application_name="entityq") as connection:
        await require_schema(connection, schema)
        yield connection


async def find_namespace(connection: Connection, settings: Settings) -> str:
    """The configured one, or the only one of the schema: a command without an app has no other.

    Raises CommandError.
    """
    if settings.namespace:
        return settings.namespace
    found = await read_namespaces(connection)
    if not found:
        raise CommandError(
            f"Schema {settings.schema} has no cluster yet: run `entityq migrate`.", ExitCode.UNAVAILABLE
        )
    if len(found) > 1:
        raise usage_error(
            f"Schema {settings.schema} has the namespaces {', '.join(found)}: set ENTITYQ_NAMESPACE."
        )
    return found[0]
