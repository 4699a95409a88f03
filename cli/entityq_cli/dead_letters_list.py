"""`entityq dead-letters list`."""

from datetime import datetime

import click

from entityq.dead_letter import DeadLetter, DeadLetterFilter
from entityq.postgres.dead_letters import list_dead_letters
from entityq_cli.database import run_in_namespace
from entityq_cli.dead_letter_options import filter_options, most_option
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import print_json, table, text_time, utc
from entityq_cli.refusal import one_sentence

_TEXT = 80


@click.command("list")
@app_option
@filter_options
@most_option(100)
@json_option
def command(
    *,
    app: str | None,
    type_: str | None,
    since: datetime | None,
    error: str | None,
    most: int,
    as_json: bool,
) -> None:
    """List the dead letters that nobody has handled, the newest first."""
    configure_logging("entityq", level="warning", style="text")
    wanted = DeadLetterFilter(type_, since, error)
    with one_sentence(as_json=as_json):
        letters = run_in_namespace(
            app, lambda connection, namespace: list_dead_letters(connection, namespace, wanted, most=most)
        )
    if as_json:
        print_json({"dead_letters": [document(letter) for letter in letters]})
    else:
        click.echo(_table(letters))


def document(letter: DeadLetter) -> dict[str, object]:
    return {
        "request_id": str(letter.request_id),
        "died_at": utc(letter.died_at),
        "address": str(letter.address),
        "message": letter.message,
        "attempts": letter.attempts,
        "error_type": letter.error_type,
        "error": letter.error,
        "requeued_at": utc(letter.requeued_at),
        "requeued_by": letter.requeued_by,
    }


def _table(letters: list[DeadLetter]) -> str:
    rows = [
        (
            str(letter.request_id),
            text_time(letter.died_at),
            str(letter.address),
            letter.message,
            str(letter.attempts),
            _line(f"{letter.error_type}: {letter.error}"),
        )
        for letter in letters
    ]
    return table(("REQUEST", "DIED", "ENTITY", "MESSAGE", "ATTEMPTS", "ERROR"), rows)


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."
