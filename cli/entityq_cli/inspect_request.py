"""`entityq inspect request`: the life of a request."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from entityq.codec import Limits
from entityq.config import Settings
from entityq.envelope import Envelope, UnknownFormat, decode_envelope
from entityq.postgres.inspection import DeadLetter, InspectedRequest, inspect_request
from entityq.servers import open_servers
from entityq_cli.app_loading import load_settings
from entityq_cli.database import find_namespace, open_database
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import facts, print_json, table, text_time, utc
from entityq_cli.refusal import one_sentence

_ENVELOPE = Limits(max_bytes=16 * 1024**2)


@click.command("request")
@app_option
@click.argument("request_id", metavar="ID", type=click.IntRange(min=1, max=2**63 - 1))
@json_option
def command(app: str | None, request_id: int, *, as_json: bool) -> None:
    """Show the life of a request: when it was accepted, tried, and answered.

    Whatever its state, it ends with 0; with 1 when there is no such request. Its payload is not shown, its reply is
    what `entityq result` is for.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        request = asyncio.run(_inspect(load_settings(app), request_id))
        if as_json:
            print_json(_document(request))
        else:
            click.echo(_text(request))


async def _inspect(settings: Settings, request_id: int) -> InspectedRequest:
    with open_servers(settings) as servers:
        async with open_database(servers.postgres_url, settings.schema) as connection:
            namespace = await find_namespace(connection, settings)
            request = await inspect_request(connection, settings.schema, namespace, request_id)
    if request is None:
        raise CommandError(
            f"There is no request {request_id} in the namespace {namespace}, or it is no longer kept.",
            ExitCode.FAILED,
        )
    return request


@dataclass(frozen=True, slots=True)
class _Sent:
    """What the envelope says, where it is kept and of a format that is known."""

    primary_key: str | None = None
    deadline: datetime | None = None
    headers: tuple[str, ...] = ()
    payload_bytes: int | None = None


def _sent(request: InspectedRequest) -> _Sent:
    if not request.envelope:
        return _Sent()
    try:
        envelope: Envelope = decode_envelope(request.envelope, _ENVELOPE)
    except UnknownFormat:
        return _Sent()
    deadline = envelope.deadline_ms
    return _Sent(
        envelope.primary_key,
        None if deadline is None else datetime.fromtimestamp(deadline / 1000, UTC),
        tuple(envelope.headers),
        len(envelope.payload),
    )


def _text(request: InspectedRequest) -> str:
    parts = [facts(_facts(request, _sent(request)))]
    if request.dead_letters:
        letters = [
            (text_time(letter.died_at), str(letter.attempts), letter.error_type, _handled(letter))
            for letter in request.dead_letters
        ]
        parts.append(table(("DEAD LETTER", "ATTEMPTS", "ERROR", "HANDLED"), letters))
    if request.signals:
        signals = [
            (signal.name, "yes" if signal.waiting else "no", text_time(signal.signalled_at))
            for signal in request.signals
        ]
        parts.append(table(("SIGNAL", "WAITED FOR", "SIGNALLED"), signals))
    return "\n\n".join(parts)


def _facts(request: InspectedRequest, sent: _Sent) -> list[tuple[str, str]]:
    owner = "nobody" if request.owner is None else f"{request.owner.name} ({request.owner.incarnation})"
    known = [
        ("request", str(request.request_id)),
        ("message", f"{request.address} {request.message}"),
        ("state", request.state),
        ("primary key", sent.primary_key or "-"),
        ("payload", "-" if sent.payload_bytes is None else f"{sent.payload_bytes} bytes"),
        ("shard", str(request.shard)),
        ("owner", owner),
        ("accepted", text_time(request.created_at)),
        ("waited for until", text_time(sent.deadline)),
    ]
    life = request.unanswered
    if life is None:
        outcome = "-" if request.reply is None else request.reply.outcome.name.lower()
        return [*known, ("answered", text_time(request.replied_at)), ("outcome", outcome)]
    return [
        *known,
        ("processes ended", str(life.attempts)),
        ("retries", str(life.retries)),
        ("failing since", text_time(life.failing_since)),
        ("due", text_time(life.due_at or life.resume_at)),
    ]


def _handled(letter: DeadLetter) -> str:
    if letter.requeued_at is None:
        return "no"
    return f"requeued {text_time(letter.requeued_at)} by {letter.requeued_by or '-'}"


def _document(request: InspectedRequest) -> dict[str, object]:
    sent, life, owner = _sent(request), request.unanswered, request.owner
    document: dict[str, object] = {
        "request_id": str(request.request_id),
        "address": str(request.address),
        "message": request.message,
        "state": request.state,
        "primary_key": sent.primary_key,
        "payload_bytes": sent.payload_bytes,
        "headers": sent.headers,
        "shard": str(request.shard),
        "seq": str(request.seq),
        "owner": None if owner is None else {"name": owner.name, "incarnation": str(owner.incarnation)},
        "created_at": utc(request.created_at),
        "deadline": utc(sent.deadline),
        "replied_at": utc(request.replied_at),
        "epoch": None if request.epoch is None else str(request.epoch),
        "outcome": None if request.reply is None else request.reply.outcome.name.lower(),
        "unanswered": None
        if life is None
        else {
            "attempts": life.attempts,
            "retries": life.retries,
            "failing_since": utc(life.failing_since),
            "resume_at": utc(life.resume_at),
            "suspended": life.suspended,
            "cancelled": life.cancelled,
            "due_at": utc(life.due_at),
        },
    }
    document["dead_letters"] = [
        {
            "died_at": utc(letter.died_at),
            "attempts": letter.attempts,
            "error_type": letter.error_type,
            "error": letter.error,
            "requeued_at": utc(letter.requeued_at),
            "requeued_by": letter.requeued_by,
        }
        for letter in request.dead_letters
    ]
    document["signals"] = [
        {"name": signal.name, "waiting": signal.waiting, "signalled_at": utc(signal.signalled_at)}
        for signal in request.signals
    ]
    return document
