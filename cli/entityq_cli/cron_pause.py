"""`entityq cron pause`."""

import click

from entityq_cli.cron_handling import handle, name_argument
from entityq_cli.options import app_option


@click.command("pause")
@app_option
@name_argument
def command(app: str | None, name: str) -> None:
    """Fire a schedule no more, until it is resumed. What runs, goes on."""
    handle(app, name, lambda schedule: schedule.pause(), as_json=False)
