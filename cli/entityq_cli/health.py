"""`entityq health`: for health checks of containers and for people; it does not import the app."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import click
import psycopg
from redis.exceptions import RedisError

from entityq import EntityQError
from entityq.config import Servers, Settings, masked_url
from entityq.postgres.connect import Connection, connect
from entityq.postgres.membership import live_runners
from entityq.postgres.migrate import require_schema
from entityq.postgres.overview import read_reshard
from entityq.redis.connect import open_client
from entityq.redis.safety import check_server
from entityq.servers import open_servers
from entityq_cli.database import find_namespace
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.log_format import configure_logging
from entityq_cli.options import json_option, timeout_option
from entityq_cli.output import print_json, table
from entityq_cli.refusal import one_sentence


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    detail: str


@click.command("health")
@timeout_option(5.0, "How long each check may take.")
@json_option
def command(timeout: float, *, as_json: bool) -> None:
    """Check Postgres, its schema, Redis, and that a runner is alive.

    It ends with 0, or with 69 if one of them is not as it should be. The app is not imported: the servers
    are those of ENTITYQ_* variables and of [tool.entityq].
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        settings = Settings.load()
        with open_servers(settings) as servers:
            checks = asyncio.run(_Checks(settings, servers, timeout).run())
    healthy = all(check.ok for check in checks)
    if as_json:
        found = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks]
        print_json({"healthy": healthy, "checks": found})
    else:
        rows = [(check.name, "ok" if check.ok else "FAILED", check.detail) for check in checks]
        click.echo(table(("CHECK", "STATE", "DETAIL"), rows))
    raise SystemExit(ExitCode.DONE if healthy else ExitCode.UNAVAILABLE)


class _Checks:
    """What cannot be known is left out: the runners without the schema, both without Postgres."""

    def __init__(self, settings: Settings, servers: Servers, timeout: float) -> None:
        self._settings = settings
        self._servers = servers
        self._timeout = timeout
        self._checks: list[Check] = []

    async def run(self) -> list[Check]:
        async with AsyncExitStack() as stack:
            connection = await self._connect(stack)
            if connection is not None and await self._check("schema", lambda: self._schema(connection)):
                await self._check("runners", lambda: self._runners(connection))
                await self._check("shards", lambda: self._shards(connection))
            await self._check("redis", self._redis)
        return self._checks

    async def _connect(self, stack: AsyncExitStack) -> Connection | None:
        opened: list[Connection] = []

        async def postgres() -> str:
            url = self._servers.postgres_url
            connection = await connect(url, schema=self._settings.schema, deadline=self._timeout)
            opened.append(await stack.enter_async_context(connection))
            return masked_url(url)

        await self._check("postgres", postgres)
        return opened[0] if opened else None

    async def _schema(self, connection: Connection) -> str:
        await require_schema(connection, self._settings.schema)
        return self._settings.schema

    async def _runners(self, connection: Connection) -> str:
        namespace = await find_namespace(connection, self._settings)
        alive = await live_runners(connection, self._settings.schema, namespace)
        serving = [member.name for member in alive if not member.draining]
        if not serving:
            raise CommandError(f"no live runner in the namespace {namespace}", ExitCode.UNAVAILABLE)
        return f"{len(serving)} in the namespace {namespace}"

    async def _shards(self, connection: Connection) -> str:
        namespace = await find_namespace(connection, self._settings)
        unfinished = await read_reshard(connection, namespace)
        if unfinished is not None:
            raise CommandError(
                f"a reshard is not finished: {unfinished.change}. If nobody runs it: {unfinished.change.command}",
                ExitCode.UNAVAILABLE,
            )
        return "all groups are open"

    async def _redis(self) -> str:
        address = masked_url(self._servers.redis_url)
        async with open_client(self._servers.redis_url) as client:
            await check_server(client, address)
        return address

    async def _check(self, name: str, check: Callable[[], Awaitable[str]]) -> bool:
        ok, detail = False, ""
        try:
            async with asyncio.timeout(self._timeout):
                detail = await check()
            ok = True
        except TimeoutError:
            detail = f"no answer within {self._timeout:g} s"
        except EntityQError as error:
            detail = error.what
        except CommandError as error:
            detail = error.sentence
        except (psycopg.Error, RedisError, OSError) as error:
            detail = " ".join(str(error).split())
        self._checks.append(Check(name, ok, detail))
        return ok
