"""`entityq reshard`: another number of shards for a group, another group for an entity type."""

import asyncio
import signal
from collections.abc import Sequence

import click
from redis.exceptions import RedisError

from entityq.address import Shard
from entityq.config import Servers, Settings, masked_url
from entityq.postgres.connect import connect_lease
from entityq.postgres.migrate import require_schema
from entityq.postgres.overview import Change, Reshard, read_reshard
from entityq.postgres.reshard import BATCH, WAIT, Resharding
from entityq.postgres.safety import check_server, refuse_pooler
from entityq.redis.connect import open_client
from entityq.redis.keys import Keys
from entityq.redis.streams import delete_streams
from entityq.servers import open_servers
from entityq_cli.app_loading import load_settings
from entityq_cli.database import find_namespace, open_database
from entityq_cli.exit_code import CommandError, ExitCode, usage_error
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option, option
from entityq_cli.output import print_json
from entityq_cli.refusal import one_sentence


@click.command("reshard")
@app_option
@option(
    "--group", variable="GROUP", metavar="NAME", help="The shard group to change, or to move the type to."
)
@option(
    "--shards",
    variable="NEW_SHARDS",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="How many shards the group is going to have.",
)
@option("--type", "type_", variable="TYPE", metavar="TYPE", help="The entity type to move to the group.")
@option(
    "--wait",
    variable="RESHARD_WAIT",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=WAIT,
    show_default=True,
    help="How long runners may take to give up their shards, and transactions to end, before it is called off.",
)
@option(
    "--batch",
    variable="BATCH",
    type=click.IntRange(1),
    metavar="ROWS",
    default=BATCH,
    show_default=True,
    help="How many rows are moved in one transaction.",
)
@option(
    "--status", variable="STATUS", is_flag=True, help="Show the one that is not finished; change nothing."
)
@json_option
def command(
    *,
    app: str | None,
    group: str | None,
    shards: int | None,
    type_: str | None,
    wait: float,
    batch: int,
    status: bool,
    as_json: bool,
) -> None:
    """Change how many shards a group has (--group, --shards), or the group of an entity type (--type, --group).

    Meanwhile the groups concerned accept and answer nothing; all other groups go on. What was accepted is
    answered afterwards, in its order, and replies, keys and states are kept. If it is interrupted, run the
    same command again.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        if status:
            _show(asyncio.run(_read(load_settings(app))), as_json=as_json)
            return
        change = _change(group, shards, type_)
        try:
            done = asyncio.run(_reshard(load_settings(app), change, wait=wait, batch=batch))
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise CommandError(
                "It was stopped; `entityq reshard --status` tells how far it is.", ExitCode.FAILED
            ) from None
    if as_json:
        print_json({"reshard": {**_described(change), "changed": done}})
    elif done:
        click.echo(f"Done: {change}.")
    else:
        click.echo(f"Nothing to do: {change} was so already.")


def _change(group: str | None, shards: int | None, type_: str | None) -> Change:
    if group is None or (shards is None) == (type_ is None):
        raise usage_error("Give --group and --shards, or --type and --group.")
    return Change(group, shards, type_)


async def _read(settings: Settings) -> Reshard | None:
    with open_servers(settings) as servers:
        async with open_database(servers.postgres_url, settings.schema) as connection:
            return await read_reshard(connection, await find_namespace(connection, settings))


def _show(unfinished: Reshard | None, *, as_json: bool) -> None:
    if as_json:
        found = None if unfinished is None else {**_described(unfinished.change), "phase": unfinished.phase}
        print_json({"unfinished": found})
    elif unfinished is None:
        click.echo("No reshard is unfinished.")
    else:
        click.echo(
            f"The reshard of {unfinished.change} is not finished ({unfinished.phase}, begun at "
            f"{unfinished.started_at:%Y-%m-%d %H:%M:%S}Z). If nobody runs it: {unfinished.change.command}"
        )


def _described(change: Change) -> dict[str, object]:
    return {"group": change.group, "shards": change.shards, "type": change.type}


async def _reshard(settings: Settings, change: Change, *, wait: float, batch: int) -> bool:
    task = asyncio.current_task()
    if task is not None:
        # As Ctrl-C: what can be undone is.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with open_servers(settings) as servers:
        await refuse_pooler(servers.lease_url, setting="lease_url")
        # The lease URL: the locks are the session's.
        connection = await connect_lease(
            servers.lease_url, schema=settings.schema, application_name="entityq reshard"
        )
        async with connection:
            await check_server(connection)
            await require_schema(connection, settings.schema)
            namespace = await find_namespace(connection, settings)

            async def forget_streams(shards: Sequence[Shard]) -> None:
                await _forget_streams(servers, Keys(namespace), shards)

            return await Resharding(
                connection,
                schema=settings.schema,
                namespace=namespace,
                say=lambda sentence: click.echo(sentence, err=True),
                forget_streams=forget_streams,
                wait=wait,
                batch=batch,
            ).run(change)


async def _forget_streams(servers: Servers, keys: Keys, shards: Sequence[Shard]) -> None:
    """What is left there does no harm: runners drop it. But nobody else would ever delete it."""
    try:
        async with open_client(servers.redis_url) as redis:
            await delete_streams(redis, [keys.stream(shard) for shard in shards])
    except (RedisError, OSError, TimeoutError) as error:
        names = sorted({shard.group for shard in shards})
        click.echo(
            f"The old streams are still in Redis at {masked_url(servers.redis_url)} "
            f"({' '.join(str(error).split()) or 'no answer'}): they do no harm. Those of shards that are gone "
            f"can be deleted later: {', '.join(_pattern(keys, name) for name in names)}.",
            err=True,
        )


def _pattern(keys: Keys, group: str) -> str:
    return keys.stream(Shard(group, 0)).decode().removesuffix("0") + "*"
