"""One connection to Postgres for a command that reads, and the namespace that it is about."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from entityq.config import Settings
from entityq.postgres.connect import Connection, connect
from entityq.postgres.migrate import require_schema
from entityq.postgres.overview import read_namespaces
from entityq.servers import open_servers
from entityq_cli.app_loading import load_settings
from entityq_cli.exit_code import CommandError, ExitCode, usage_error

T = TypeVar("T")


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


def run_in_namespace(app: str | None, work: Callable[[Connection, str], Coroutine[Any, Any, T]]) -> T:
    """The result of `work`, which gets a connection and the namespace of the app or the settings.

    Raises CommandError, UnsafeConfiguration, PersistenceError.
    """
    return asyncio.run(_run(load_settings(app), work))


async def _run(settings: Settings, work: Callable[[Connection, str], Coroutine[Any, Any, T]]) -> T:
    with open_servers(settings) as servers:
        async with open_database(servers.postgres_url, settings.schema) as connection:
            return await work(connection, await find_namespace(connection, settings))
