"""`entityq cron run`."""

import click

from entityq_cli.cron_handling import handle, name_argument
from entityq_cli.options import app_option, json_option
from entityq_cli.output import print_json


@click.command("run")
@app_option
@name_argument
@json_option
def command(app: str | None, name: str, *, as_json: bool) -> None:
    """Run a schedule now, besides its instants, also while it is paused; prints the request id of the run.

    It does not wait for the run: `entityq result ID` does.
    """
    request_id = handle(app, name, lambda schedule: schedule.run(), as_json=as_json)
    if as_json:
        print_json({"request_id": str(request_id)})
    else:
        click.echo(request_id)
