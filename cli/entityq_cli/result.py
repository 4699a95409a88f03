"""`entityq result`: what a request came to."""

import asyncio
from typing import cast

import click

from entityq.codec import Limits, unpack
from entityq.config import Settings
from entityq.postgres.overview import StoredRequest, find_request
from entityq.reply import MAX_BYTES, Outcome, Reply
from entityq.servers import open_servers
from entityq_cli.app_loading import load_settings
from entityq_cli.database import find_namespace, open_database
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import json_text, print_json, utc
from entityq_cli.refusal import one_sentence


@click.command("result")
@app_option
@click.argument("request_id", metavar="ID", type=click.IntRange(min=1, max=2**63 - 1))
@json_option
def command(app: str | None, request_id: int, *, as_json: bool) -> None:
    """Show the reply of a request.

    It ends with 0 and the reply as JSON, with 1 if the reply is a failure or there is no such request, with
    75 while the request is unanswered.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        settings = load_settings(app)
        request = asyncio.run(_find(settings, request_id))
        if as_json:
            print_json(_document(request))
        _show(request, as_json=as_json)


async def _find(settings: Settings, request_id: int) -> StoredRequest:
    with open_servers(settings) as servers:
        async with open_database(servers.postgres_url, settings.schema) as connection:
            namespace = await find_namespace(connection, settings)
            request = await find_request(connection, namespace, request_id)
    if request is None:
        raise CommandError(f"There is no request {request_id} in the namespace {namespace}.", ExitCode.FAILED)
    return request


def _show(request: StoredRequest, *, as_json: bool) -> None:
    reply = request.reply
    what = f"Request {request.request_id} ({request.address} {request.message})"
    if request.expired:
        raise CommandError(
            f"{what} was answered at {utc(request.replied_at)}; its reply is no longer kept.", ExitCode.FAILED
        )
    if reply is None:
        raise CommandError(f"{what} is not answered yet; it stays accepted.", ExitCode.STILL_PENDING)
    value = _value(reply)
    if reply.outcome is Outcome.FAILURE:
        raise CommandError(
            f"{what} was answered with the failure {reply.type} {json_text(value)}.", ExitCode.FAILED
        )
    if reply.outcome is not Outcome.SUCCESS:
        raise CommandError(f"{what} was answered with {reply.type}: {_message(value)}", ExitCode.FAILED)
    if not as_json:
        click.echo(json_text(value))


def _document(request: StoredRequest) -> dict[str, object]:
    document: dict[str, object] = {
        "request_id": str(request.request_id),
        "address": str(request.address),
        "message": request.message,
        "shard": str(request.shard),
        "created_at": utc(request.created_at),
        "replied_at": utc(request.replied_at),
        "outcome": "expired" if request.expired else "pending",
    }
    reply = request.reply
    if reply is not None:
        document["outcome"] = reply.outcome.name.lower()
        value = _value(reply)
        if reply.outcome is Outcome.SUCCESS:
            document["reply"] = value
        elif reply.outcome is Outcome.FAILURE:
            document |= {"type": reply.type, "fields": value}
        else:
            document |= {"type": reply.type, "message": _message(value)}
    return document


def _value(reply: Reply) -> object:
    """As it is stored: the app's types are not needed to show it."""
    value: object = unpack(
        reply.value, Limits(max_bytes=MAX_BYTES), f"The reply of request {reply.request_id}"
    )
    return value


def _message(value: object) -> object:
    return cast("dict[str, object]", value)["message"] if isinstance(value, dict) else value
