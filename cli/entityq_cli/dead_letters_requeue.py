"""`entityq dead-letters requeue`: by filter."""

from datetime import datetime

import click

from entityq.dead_letter import DeadLetterFilter, Handled
from entityq.postgres.connect import Connection
from entityq.postgres.dead_letters import list_dead_letters, requeue
from entityq_cli.database import run_in_namespace
from entityq_cli.dead_letter_options import filter_options, most_option, operator, show_handled
from entityq_cli.exit_code import usage_error
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option, option
from entityq_cli.refusal import one_sentence


@click.command("requeue")
@app_option
@filter_options
@option("--all", "everything", variable="ALL", is_flag=True, help="Without a filter: all of them.")
@most_option(10_000)
@json_option
def command(
    *,
    app: str | None,
    type_: str | None,
    since: datetime | None,
    error: str | None,
    everything: bool,
    most: int,
    as_json: bool,
) -> None:
    """Run all dead letters again that fit the filter, as `entityq requeue` does with single ones."""
    configure_logging("entityq", level="warning", style="text")
    wanted = DeadLetterFilter(type_, since, error)
    if wanted == DeadLetterFilter() and not everything:
        raise usage_error("Which ones? Give --type, --since or --error, or --all.")

    async def requeue_all(connection: Connection, namespace: str) -> Handled:
        letters = await list_dead_letters(connection, namespace, wanted, most=most)
        # The oldest first: they run in this order.
        ids = [letter.request_id for letter in reversed(letters)]
        return await requeue(connection, namespace, ids, by=operator())

    with one_sentence(as_json=as_json):
        handled = run_in_namespace(app, requeue_all)
    show_handled(handled, "requeued", as_json=as_json)
