"""The `entityq` command: a group whose commands are imported when they are called."""

import sys

import click

from entityq_cli.exit_code import CommandError
from entityq_cli.lazy_group import LazyCommand, LazyGroup
from entityq_cli.options import app_on_group

_COMMANDS = (
    LazyCommand("worker", "entityq_cli.worker", "Start runners, and keep them running."),
    LazyCommand("send", "entityq_cli.send", "Send a message to an entity, or run a task."),
    LazyCommand("result", "entityq_cli.result", "Show the reply of a request."),
    LazyCommand("cancel", "entityq_cli.cancel", "Cancel a request: it is not run, or is interrupted."),
    LazyCommand("signal", "entityq_cli.signal", "Send a handler the value that it waits for."),
    LazyCommand("requeue", "entityq_cli.requeue", "Run requests again that were given up."),
    LazyCommand("dead-letters", "entityq_cli.dead_letters", "Show and handle requests that were given up."),
    LazyCommand("cron", "entityq_cli.cron", "Show and handle schedules."),
    LazyCommand("status", "entityq_cli.status", "Show runners, shards and pending requests."),
    LazyCommand("inspect", "entityq_cli.inspection", "Show all that is known about an entity or a request."),
    LazyCommand("migrate", "entityq_cli.migrate", "Bring the database's schema up to date."),
    LazyCommand("reshard", "entityq_cli.reshard", "Change the number of shards, or a type's group."),
    LazyCommand("health", "entityq_cli.health", "Check the servers, and that a runner is alive."),
    LazyCommand("dev", "entityq_cli.dev", "Embedded servers and a worker that reloads changed code."),
    LazyCommand("runner", "entityq_cli.runner", "", hidden=True),
)


@click.group(
    cls=LazyGroup,
    commands=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings are ENTITYQ_* variables or [tool.entityq] in pyproject.toml: docs/configuration.md.",
)
@click.version_option(package_name="entityq", message="%(prog)s %(version)s")
@app_on_group
def cli(app: str | None) -> None:
    """Durable entities: send messages to them, run the processes that they live in."""
    # `app` is for the commands: they read it from this context (see options).


def main() -> None:
    """Ends the process."""
    try:
        cli(prog_name="entityq")
    except CommandError as error:
        click.echo(f"Error: {error.sentence}", err=True)
        sys.exit(error.code)
