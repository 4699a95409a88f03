"""`entityq dev`: everything that a developer needs, in one command."""

import os
from contextlib import ExitStack

import click

from entityq.config import Settings, variable
from entityq.servers import open_servers
from entityq_cli.options import given_groups, option, runner_options
from entityq_cli.refusal import one_sentence
from entityq_cli.supervisor import run_worker
from entityq_cli.worker_options import WorkerOptions


@click.command("dev")
@click.pass_context
@runner_options
@option(
    "-c",
    "--processes",
    variable="PROCESSES",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runners, each a process.",
)
def command(
    ctx: click.Context,
    *,
    app: str | None,
    groups: str | None,
    name: str,
    log_level: str,
    log_format: str,
    processes: int,
) -> None:
    """Embedded servers, migrated, and a worker that reloads changed code.

    The runners are replaced, one after the other, when a .py file below the working directory changes. Where
    servers are configured, these are used, and migrated.
    """
    # The runners inherit it. It says what to do without URLs, and nothing where there are some.
    os.environ[variable("embedded")] = "1"
    options = WorkerOptions(
        app=app,
        processes=processes,
        groups=given_groups(ctx, groups),
        name=name,
        log_level=log_level,
        log_format=log_format,
        reload=True,
    )
    with ExitStack() as stack:
        with one_sentence():
            # Held here, so that they outlive a runner that is replaced.
            stack.enter_context(open_servers(Settings.load()))
        run_worker(options)
