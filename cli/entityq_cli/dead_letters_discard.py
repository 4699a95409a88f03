"""`entityq dead-letters discard`."""

import click

from entityq.postgres.dead_letters import discard
from entityq_cli.database import run_in_namespace
from entityq_cli.dead_letter_options import REQUEST_ID, show_handled
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.refusal import one_sentence


@click.command("discard")
@app_option
@click.argument("request_ids", metavar="ID...", type=REQUEST_ID, nargs=-1, required=True)
@json_option
def command(app: str | None, request_ids: tuple[int, ...], *, as_json: bool) -> None:
    """Take dead letters off the list, with their causes. The requests stay answered with what they have."""
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        handled = run_in_namespace(
            app, lambda connection, namespace: discard(connection, namespace, request_ids)
        )
    show_handled(handled, "discarded", as_json=as_json)
