"""`entityq cron ...`: schedules."""

import click

from entityq_cli.lazy_group import LazyCommand, LazyGroup

_COMMANDS = (
    LazyCommand("list", "entityq_cli.cron_list", "List them, with their next and last runs."),
    LazyCommand("pause", "entityq_cli.cron_pause", "Fire one no more, until it is resumed."),
    LazyCommand("resume", "entityq_cli.cron_resume", "Fire it again, from its next instant on."),
    LazyCommand("run", "entityq_cli.cron_run", "Run one now, besides its schedule."),
)


@click.group("cron", cls=LazyGroup, commands=_COMMANDS)
def command() -> None:
    """Schedules (`@app.cron`): look at them, pause and resume them, run one now."""
