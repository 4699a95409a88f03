"""`entityq dead-letters show`."""

from collections.abc import Iterator, Mapping
from typing import Any

import click

from entityq.dead_letter import DeadLetter
from entityq.postgres.dead_letters import read_dead_letters
from entityq_cli.database import run_in_namespace
from entityq_cli.dead_letter_options import REQUEST_ID
from entityq_cli.dead_letters_list import document
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import facts, print_json, text_time
from entityq_cli.refusal import one_sentence

# How an exception is introduced, by its key in the cause above it.
_CHAIN = {
    "cause": "raised from",
    "context": "raised while handling",
    "exceptions": "one of its exceptions",
}


@click.command("show")
@app_option
@click.argument("request_id", metavar="ID", type=REQUEST_ID)
@json_option
def command(app: str | None, request_id: int, *, as_json: bool) -> None:
    """Show a dead letter with its cause: type, message, traceback, and the chain of causes.

    A request that was requeued and given up again has several, the newest first. It ends with 1 when it has none.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        letters = run_in_namespace(
            app, lambda connection, namespace: read_dead_letters(connection, namespace, request_id)
        )
        if as_json:
            print_json({"dead_letters": [{**document(each), "cause": each.cause} for each in letters]})
        elif letters:
            click.echo("\n\n".join(map(_text, letters)))
        if not letters:
            raise CommandError(f"Request {request_id} is no dead letter.", ExitCode.FAILED)


def _text(letter: DeadLetter) -> str:
    handled = "no"
    if letter.requeued_at is not None:
        handled = f"requeued {text_time(letter.requeued_at)} by {letter.requeued_by or '-'}"
    known = [
        ("request", str(letter.request_id)),
        ("message", f"{letter.address} {letter.message}"),
        ("died", text_time(letter.died_at)),
        ("attempts", str(letter.attempts)),
        ("handled", handled),
    ]
    return "\n".join([facts(known), "", *_lines(letter.cause, "")])


def _lines(cause: Mapping[str, Any], indent: str) -> Iterator[str]:
    yield f"{indent}{cause.get('type')}: {cause.get('message')}"
    for note in cause.get("notes", ()):
        yield f"{indent}  note: {note}"
    for frame in cause.get("traceback", ()):
        yield f"{indent}  {frame}"
    for key, words in _CHAIN.items():
        below: Any = cause.get(key) or []
        for each in below if key == "exceptions" else [below] if below else []:
            yield f"{indent}{words}:"
            yield from _lines(each, f"{indent}  ")
