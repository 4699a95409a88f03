"""`entityq signal`: a handler that waits for it goes on."""

import asyncio
import json

import click

from entityq.codec import Limits
from entityq.config import Settings
from entityq.postgres.facts import load_facts
from entityq.postgres.signals import store_signal
from entityq.servers import open_servers
from entityq.signal_outcome import SignalOutcome
from entityq.signal_token import read_signal_token
from entityq.signal_value import encode_signal
from entityq_cli.app_loading import load_settings
from entityq_cli.database import find_namespace, open_database
from entityq_cli.exit_code import CommandError, ExitCode, usage_error
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import print_json
from entityq_cli.refusal import one_sentence

_REFUSED = {
    SignalOutcome.ALREADY: "It is already signalled: the first value stands.",
    SignalOutcome.TIMED_OUT: "Its wait has timed out: the handler does not wait for it any more.",
    SignalOutcome.ANSWERED: "Its request is already answered: nobody waits for it.",
    SignalOutcome.UNKNOWN: "Its request is no longer kept.",
}


@click.command("signal")
@app_option
@click.argument("token", metavar="TOKEN")
@click.argument("value", metavar="[JSON]", default="null")
@json_option
def command(app: str | None, token: str, value: str, *, as_json: bool) -> None:
    """Send the value of a signal, by its token: a handler that waits for it, or will, gets it.

    It ends with 0 when it is stored, with 1 if there is a value already or nobody waits for one any more.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        outcome = asyncio.run(_signal(load_settings(app), token, _parsed(value)))
        if as_json:
            print_json({"outcome": outcome.value})
        if outcome is not SignalOutcome.SIGNALLED:
            raise CommandError(_REFUSED[outcome], ExitCode.FAILED)
        if not as_json:
            click.echo(outcome.value)


def _parsed(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise usage_error(f"The value is not JSON: {error}") from None
    return value


async def _signal(settings: Settings, token: str, value: object) -> SignalOutcome:
    encoded = encode_signal(value, Limits(settings.max_payload))
    with open_servers(settings) as servers:
        async with open_database(servers.postgres_url, settings.schema) as connection:
            namespace = await find_namespace(connection, settings)
            place = read_signal_token((await load_facts(connection, namespace)).signal_key, token)
            return await store_signal(connection, namespace, place, encoded)
