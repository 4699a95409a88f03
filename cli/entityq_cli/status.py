"""`entityq status`: who runs, and what waits."""

import asyncio

import click

from entityq.config import Settings
from entityq.postgres.overview import GroupOverview, Overview, RunnerOverview, read_overview
from entityq.servers import open_servers
from entityq_cli.app_loading import load_settings
from entityq_cli.database import find_namespace, open_database
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import print_json, table, utc
from entityq_cli.refusal import one_sentence


@click.command("status")
@app_option
@json_option
def command(app: str | None, *, as_json: bool) -> None:
    """Show runners, shards and pending requests."""
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        overview = asyncio.run(_read(load_settings(app)))
    if as_json:
        print_json(_document(overview))
    else:
        click.echo(_text(overview))


async def _read(settings: Settings) -> Overview:
    with open_servers(settings) as servers:
        async with open_database(servers.postgres_url, settings.schema) as connection:
            namespace = await find_namespace(connection, settings)
            return await read_overview(connection, settings.schema, namespace)


def _text(overview: Overview) -> str:
    runners = table(
        ("RUNNER", "INCARNATION", "STATE", "GROUPS", "SHARDS", "JOINED"),
        [_runner_row(runner) for runner in overview.runners],
    )
    groups = table(
        ("GROUP", "STATE", "SHARDS", "HELD", "PENDING", "OLDEST", "TIMERS"),
        [_group_row(group) for group in overview.groups],
    )
    return (
        f"namespace {overview.namespace}\n\n{runners}\n\n{groups}"
        f"{_dead_letters(overview)}{_strangers(overview)}{_reshard(overview)}"
    )


def _dead_letters(overview: Overview) -> str:
    return (
        f"\n\n{overview.dead_letters} dead letters that nobody has handled" if overview.dead_letters else ""
    )


def _strangers(overview: Overview) -> str:
    """Shards that nobody serves, until somebody acts."""
    if not overview.strangers:
        return ""
    rows = [
        (str(stranger.pid), stranger.application or "-", str(sum(stranger.held.values())))
        for stranger in overview.strangers
    ]
    return f"\n\nNo runner, and holds shards:\n{table(('PID', 'APPLICATION', 'SHARDS'), rows)}"


def _reshard(overview: Overview) -> str:
    if overview.reshard is None:
        return ""
    change = overview.reshard.change
    return (
        f"\n\nA reshard is not finished: {change}. If nobody runs it, this goes on with it: {change.command}"
    )


def _runner_row(runner: RunnerOverview) -> tuple[str, ...]:
    return (
        runner.name,
        str(runner.incarnation),
        _state(runner),
        ",".join(runner.groups),
        str(sum(runner.held.values())),
        "-" if runner.joined_at is None else f"{runner.joined_at:%Y-%m-%d %H:%M:%S}Z",
    )


def _group_row(group: GroupOverview) -> tuple[str, ...]:
    oldest = "-" if group.oldest is None else f"{group.oldest:.1f} s"
    state = "open" if group.open else "closed"
    numbers = (str(group.shards), str(group.held), str(group.pending), oldest, str(group.timers))
    return (group.name, state, *numbers)


def _document(overview: Overview) -> dict[str, object]:
    return {
        "namespace": overview.namespace,
        "runners": [
            {
                "name": runner.name,
                "incarnation": str(runner.incarnation),
                "state": _state(runner),
                "groups": runner.groups,
                "types": runner.types,
                "shards": runner.held,
                "joined_at": utc(runner.joined_at),
            }
            for runner in overview.runners
        ],
        "groups": [
            {
                "name": group.name,
                "state": "open" if group.open else "closed",
                "shards": group.shards,
                "held": group.held,
                "pending": group.pending,
                "oldest_seconds": group.oldest,
                "timers": group.timers,
            }
            for group in overview.groups
        ],
        "dead_letters": overview.dead_letters,
        "strangers": [
            {"pid": stranger.pid, "application_name": stranger.application, "shards": stranger.held}
            for stranger in overview.strangers
        ],
        "reshard": None if overview.reshard is None else {"command": overview.reshard.change.command},
    }


def _state(runner: RunnerOverview) -> str:
    if runner.draining:
        return "draining"
    return "serving" if runner.healthy else "unhealthy"
