"""`entityq worker`: starts runners and keeps them running."""

import click

from entityq_cli.options import given_groups, option, runner_options
from entityq_cli.supervisor import run_worker
from entityq_cli.worker_options import WorkerOptions, default_processes


@click.command("worker")
@click.pass_context
@runner_options
@option(
    "-c",
    "--processes",
    variable="PROCESSES",
    type=click.IntRange(min=1),
    help="Runners, each a process. Default: one for each core.",
)
def command(
    ctx: click.Context,
    *,
    app: str | None,
    groups: str | None,
    name: str,
    log_level: str,
    log_format: str,
    processes: int | None,
) -> None:
    """Start runners, and keep them running.

    TERM and INT drain: running turns end, the shards are handed over. A second one stops cold, as QUIT does:
    requests that were cut off stay accepted and are run by others. A third one kills. HUP restarts the
    runners one after the other; USR1 writes the stacks of all threads to stderr.
    """
    run_worker(
        WorkerOptions(
            app=app,
            processes=processes or default_processes(),
            groups=given_groups(ctx, groups),
            name=name,
            log_level=log_level,
            log_format=log_format,
            one_each_core=processes is None,
        )
    )
