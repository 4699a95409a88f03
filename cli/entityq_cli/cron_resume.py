"""`entityq cron resume`."""

import click

from entityq_cli.cron_handling import handle, name_argument
from entityq_cli.options import app_option


@click.command("resume")
@app_option
@name_argument
def command(app: str | None, name: str) -> None:
    """Fire a schedule again, from its next instant on. Those of the pause are not caught up with."""
    handle(app, name, lambda schedule: schedule.resume(), as_json=False)
