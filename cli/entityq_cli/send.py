"""`entityq send`: one message to an entity, or one run of a task."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import click

from entityq import EntityQ, Failure, MalformedMessage, UnknownFailure
from entityq.address import Address
from entityq.call import Call, CallOptions, new_call, task_address
from entityq.definition import EntityDefinition
from entityq.receipt import Receipt
from entityq.registration import TASK_MESSAGE
from entityq.timing import read_delay, read_eta
from entityq_cli.app_loading import load_app
from entityq_cli.exit_code import CommandError, ExitCode, usage_error
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option, option, timeout_option
from entityq_cli.output import json_text, print_json
from entityq_cli.refusal import one_sentence


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the message is called with."""

    args: Sequence[object]
    kwargs: Mapping[str, object]
    options: CallOptions


@click.command("send")
@app_option
@click.argument("address", metavar="TYPE/ID|TASK")
@click.argument("message", required=False)
@option(
    "-k", "--kwargs", variable="KWARGS", metavar="JSON", default="{}", help="Arguments by name: an object."
)
@option("-a", "--args", variable="ARGS", metavar="JSON", default="[]", help="Arguments by place: an array.")
@option(
    "--primary-key",
    variable="PRIMARY_KEY",
    metavar="KEY",
    help="For messages that declare none: a repeat gets the first reply.",
)
@option(
    "--eta",
    variable="ETA",
    metavar="TIME",
    help="When it is to run: ISO 8601, with a time zone, as in 2030-01-31T09:00Z.",
)
@option("--delay", variable="DELAY", metavar="S", type=float, help="In how many seconds it is to run.")
@option("--wait", variable="WAIT", is_flag=True, help="Wait for the reply, and print it as JSON.")
@timeout_option(None, "How long to wait. Default: the message's own timeout, or ENTITYQ_ASK_TIMEOUT.")
@json_option
def command(
    *,
    app: str | None,
    address: str,
    message: str | None,
    kwargs: str,
    args: str,
    primary_key: str | None,
    eta: str | None,
    delay: float | None,
    timeout: float | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Send a message to an entity, or run a task.

    \b
    entityq send Account/acct-1 deposit -k '{"amount": 10, "reference": "r-1"}' --wait
    entityq send add -a '[2, 3]' --wait

    Prints the request id, and with --wait the reply instead. It is 1 if the reply is a failure, 69 if no
    runner or server answered, 75 if the time is over and the request stays accepted.
    """
    configure_logging("entityq", level="warning", style="text")
    given = Arguments(
        args=_json("--args", args, list),
        kwargs=_json("--kwargs", kwargs, dict),
        options=CallOptions(timeout=timeout, primary_key=primary_key, eta=_eta(eta), delay=_delay(delay)),
    )
    if eta is not None and delay is not None:
        raise usage_error("--eta and --delay are both given: a request has one time.")
    with one_sentence(as_json=as_json, sending=True):
        loaded = load_app(app)
        call = _new_call(loaded, address, message, given)
        asyncio.run(_send(loaded, call, wait=wait, as_json=as_json))


def _json(option_name: str, text: str, kind: type[Any]) -> Any:
    what = "array" if kind is list else "object"
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise usage_error(f"{option_name} is not JSON: {error}.") from error
    if not isinstance(value, kind):
        raise usage_error(f"{option_name} must be a JSON {what}.")
    return value


def _eta(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return read_eta(datetime.fromisoformat(text))
    except ValueError as error:
        raise usage_error(f"--eta is not a time in ISO 8601: {text}.") from error
    except MalformedMessage as error:
        raise usage_error(f"--{error.what}. Add one, as in {text}Z, or {text}+02:00.") from error


def _delay(seconds: float | None) -> float | None:
    try:
        return None if seconds is None else read_delay(seconds)
    except MalformedMessage as error:
        raise usage_error(f"--{error.what}.") from error


def _new_call(app: EntityQ, address: str, message: str | None, given: Arguments) -> Call:
    """Raises CommandError for whatever nobody could process: then nothing is sent."""
    type_, slash, _ = address.partition("/")
    entity = app.definitions.get(type_)
    if entity is None:
        known = ", ".join(sorted(app.definitions)) or "none"
        raise usage_error(f"The app has no entity type or task {type_}. It has: {known}.")
    locate = (
        _task_address(app, entity, slash, message) if entity.stateless else _entity_address(entity, address)
    )
    name = TASK_MESSAGE if entity.stateless else message
    if name not in entity.messages or name is None:
        known = ", ".join(name for name in entity.messages if not name.startswith("$"))
        what = f"has no message {name}" if name else "needs a message"
        raise usage_error(f"{type_} {what}. It has: {known}.")
    try:
        return new_call(
            entity,
            entity.messages[name],
            locate,
            args=given.args,
            kwargs=given.kwargs,
            options=given.options,
            serializer=app.serializer,
        )
    except MalformedMessage as error:
        raise usage_error(f"{error.what}. {error.advice}".rstrip()) from error


Locate = Callable[[str | None], Address]


def _task_address(app: EntityQ, task: EntityDefinition, slash: str, message: str | None) -> Locate:
    if slash or message is not None:
        raise usage_error(f"{task.type} is a task: it is addressed by its name alone.")
    return partial(_locate_task, app, task)


def _locate_task(app: EntityQ, task: EntityDefinition, primary_key: str | None) -> Address:
    return task_address(task.type, primary_key, app.new_id)


def _entity_address(entity: EntityDefinition, text: str) -> Locate:
    try:
        address = Address.parse(text)
    except MalformedMessage as error:
        raise usage_error(f"{error.what}. Write type and id, as in {entity.type}/1.") from error
    return lambda _: address


async def _send(app: EntityQ, call: Call, *, wait: bool, as_json: bool) -> None:
    async with app.open_client() as client:
        receipt = await client.send(call)
        if wait:
            await _wait(receipt, as_json=as_json)
        elif as_json:
            print_json(_accepted(receipt))
        else:
            click.echo(receipt.request_id)
            if receipt.duplicate:
                click.echo(_known(receipt), err=True)


async def _wait(receipt: Receipt[Any], *, as_json: bool) -> None:
    click.echo(_known(receipt) if receipt.duplicate else f"request {receipt.request_id}", err=True)
    try:
        value: object = await receipt
    except Failure as failure:
        if as_json:
            print_json({**_accepted(receipt), "outcome": "failure", **_described(failure)})
        raise CommandError(
            f"{receipt.address} answered with the failure {failure}.", ExitCode.FAILED
        ) from failure
    if as_json:
        print_json({**_accepted(receipt), "outcome": "success", "reply": value})
    else:
        click.echo(json_text(value))


def _accepted(receipt: Receipt[Any]) -> dict[str, object]:
    return {
        "request_id": str(receipt.request_id),
        "address": str(receipt.address),
        "duplicate": receipt.duplicate,
    }


def _known(receipt: Receipt[Any]) -> str:
    return f"request {receipt.request_id}: the primary key is known, the reply is the first one's"


def _described(failure: Failure) -> dict[str, object]:
    fields = failure.__schema__.fields(failure)
    if isinstance(failure, UnknownFailure):
        return {"type": fields["type"], "fields": fields["data"]}
    return {"type": type(failure).__name__, "fields": fields}
