"""`entityq cancel`: a request is not run, or is interrupted."""

import asyncio

import click

from entityq.cancel_outcome import CancelOutcome
from entityq.config import Settings
from entityq.postgres.cancellation import cancel_request
from entityq.servers import open_servers
from entityq_cli.app_loading import load_settings
from entityq_cli.database import find_namespace, open_database
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import print_json
from entityq_cli.refusal import one_sentence


@click.command("cancel")
@app_option
@click.argument("request_id", metavar="ID", type=click.IntRange(min=1, max=2**63 - 1))
@json_option
def command(app: str | None, request_id: int, *, as_json: bool) -> None:
    """Cancel a request: it is not run, or is interrupted.

    It ends with 0 when that is on record, with 1 if the request has another reply already or there is none.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        outcome = asyncio.run(_cancel(load_settings(app), request_id))
        if as_json:
            print_json({"request_id": str(request_id), "outcome": outcome.value})
        if outcome is CancelOutcome.ANSWERED:
            raise CommandError(
                f"Request {request_id} is already answered: its reply stands.", ExitCode.FAILED
            )
        if not as_json:
            click.echo(outcome.value)


async def _cancel(settings: Settings, request_id: int) -> CancelOutcome:
    with open_servers(settings) as servers:
        async with open_database(servers.postgres_url, settings.schema) as connection:
            namespace = await find_namespace(connection, settings)
            return await cancel_request(connection, namespace, request_id)
