"""`entityq migrate`: the database's schema."""

import asyncio

import click

from entityq.config import Settings
from entityq.postgres.facts import load_facts
from entityq.postgres.migrate import Migration, print_sql
from entityq.servers import open_servers
from entityq_cli.app_loading import load_settings
from entityq_cli.database import open_database
from entityq_cli.exit_code import usage_error
from entityq_cli.log_format import configure_logging
from entityq_cli.migrating import migrate_servers
from entityq_cli.options import app_option, option
from entityq_cli.refusal import one_sentence


@click.command("migrate")
@app_option
@option("--print", "only_print", variable="PRINT", is_flag=True, help="Print the SQL; touch no server.")
def command(app: str | None, *, only_print: bool) -> None:
    """Bring the database's schema up to date, and make the namespace's cluster.

    Safe at any time, and from several places at once. The first one decides how many shards a group has
    (ENTITYQ_SHARDS).
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence():
        settings = load_settings(app)
        if only_print:
            click.echo(print_sql(settings.schema), nl=False)
            return
        if not settings.namespace:
            raise usage_error("No namespace: give -A module:attribute, or set ENTITYQ_NAMESPACE.")
        applied, shards = asyncio.run(_migrate(settings))
    for migration in applied:
        click.echo(f"applied {migration}")
    state = "is now" if applied else "was already"
    click.echo(f"Schema {settings.schema} {state} up to date for the namespace {settings.namespace}.")
    if settings.shards not in {*shards, Settings().shards}:
        click.echo(
            f"ENTITYQ_SHARDS={settings.shards} changes nothing: this cluster was made with another number "
            f"({min(shards)}). `entityq reshard` changes it.",
            err=True,
        )


async def _migrate(settings: Settings) -> tuple[list[Migration], set[int]]:
    """What was applied, and the numbers of shards that groups have, or new ones will."""
    with open_servers(settings) as servers:
        applied = await migrate_servers(servers, settings)
        async with open_database(servers.postgres_url, settings.schema) as connection:
            facts = await load_facts(connection, settings.namespace)
        return applied, {facts.default_shards, *(group.shards for group in facts.groups.values())}
