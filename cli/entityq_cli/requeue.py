"""`entityq requeue`: dead letters run again."""

import click

from entityq.postgres.dead_letters import requeue
from entityq_cli.database import run_in_namespace
from entityq_cli.dead_letter_options import REQUEST_ID, operator, show_handled
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.refusal import one_sentence


@click.command("requeue")
@app_option
@click.argument("request_ids", metavar="ID...", type=REQUEST_ID, nargs=-1, required=True)
@json_option
def command(app: str | None, request_ids: tuple[int, ...], *, as_json: bool) -> None:
    """Run dead letters again, as if they had never been tried, behind what their entities have now.

    Their replies are taken back, and whoever sends them again with their primary key waits for the new ones. It
    ends with 1 when one of them is no dead letter; the others are requeued all the same.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        handled = run_in_namespace(
            app, lambda connection, namespace: requeue(connection, namespace, request_ids, by=operator())
        )
    show_handled(handled, "requeued", as_json=as_json)
