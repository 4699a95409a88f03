"""`entityq inspect entity`: what an entity is, where it is, and what it does."""

import asyncio
from collections.abc import Mapping

import click

from entityq.address import Address
from entityq.codec import Limits, unpack
from entityq.config import Settings
from entityq.definition import EntityDefinition
from entityq.errors import EntityQError
from entityq.postgres.inspection import InspectedEntity, LastRequest, Timer, inspect_entity
from entityq.servers import open_servers
from entityq_cli.app_loading import load_definitions, load_settings
from entityq_cli.database import find_namespace, open_database
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import facts, json_text, print_json, table, text_time, utc
from entityq_cli.refusal import one_sentence

# As large as a state can be stored.
_STATE = Limits(max_bytes=16 * 1024**2, max_depth=512, max_containers=16 * 1024**2)


@click.command("entity")
@app_option
@click.argument("address", metavar="ADDRESS")
@json_option
def command(app: str | None, address: str, *, as_json: bool) -> None:
    """Show an entity, as in Account/acct-1: its state, its owner, its requests.

    It is what the database has; no message is sent. With an app that has the type, the state is shown as that code
    reads it, otherwise as it is stored. It ends with 1 for a type that the namespace does not have.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        where = Address.parse(address)
        settings = load_settings(app)
        entity = asyncio.run(_inspect(settings, where))
        state, read_by = _state(entity, load_definitions(app))
        if as_json:
            print_json(_document(entity, state, read_by))
        else:
            click.echo(_text(entity, state, read_by))


async def _inspect(settings: Settings, address: Address) -> InspectedEntity:
    with open_servers(settings) as servers:
        async with open_database(servers.postgres_url, settings.schema) as connection:
            namespace = await find_namespace(connection, settings)
            entity = await inspect_entity(connection, settings.schema, namespace, address)
    if entity is None:
        raise CommandError(f"The namespace {namespace} has no entity type {address.type}.", ExitCode.FAILED)
    return entity


def _state(
    entity: InspectedEntity, definitions: Mapping[str, EntityDefinition]
) -> tuple[Mapping[str, object] | None, str]:
    """The fields, and who read them: "app", or "stored" where the code does not know them."""
    stored = entity.state
    if stored is None or stored.state is None:
        return None, "stored"
    definition = definitions.get(entity.address.type)
    if definition is not None:
        try:
            schema = definition.state
            values = schema.load(schema.upcast(stored.state, stored.state_version))
            return {name: values[name] for name in schema.fields}, "app"
        # Upcasters are the app's own code, which can raise whatever it likes.
        except (EntityQError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            click.echo(f"The app cannot read the state: {error}", err=True)
    return unpack(stored.state, _STATE, f"The state of {entity.address}"), "stored"


def _text(entity: InspectedEntity, state: Mapping[str, object] | None, read_by: str) -> str:
    parts = [facts(_facts(entity))]
    if state is not None:
        note = "" if read_by == "app" else " (as stored)"
        shown = facts([(name, json_text(value)) for name, value in state.items()])
        parts.append(f"State{note}:\n{shown}")
    if entity.timers:
        timers = [(str(timer.request_id), timer.message, text_time(timer.due_at)) for timer in entity.timers]
        parts.append(table(("TIMER OF", "MESSAGE", "DUE"), timers))
    if entity.last:
        requests = [
            (str(request.request_id), request.message, text_time(request.created_at), _outcome(request))
            for request in entity.last
        ]
        parts.append(table(("REQUEST", "MESSAGE", "ACCEPTED", "OUTCOME"), requests))
    return "\n\n".join(parts)


def _facts(entity: InspectedEntity) -> list[tuple[str, str]]:
    owner = "nobody" if entity.owner is None else f"{entity.owner.name} ({entity.owner.incarnation})"
    shard = f"{entity.shard}" if entity.open else f"{entity.shard} (closed by a reshard)"
    return [
        ("entity", str(entity.address)),
        ("status", entity.status),
        ("signals", ", ".join(entity.signals) or "-"),
        ("version", "-" if entity.state is None else str(entity.state.version)),
        ("state version", "-" if entity.state is None else str(entity.state.state_version)),
        ("updated", text_time(entity.updated_at)),
        ("shard", shard),
        ("owner", owner),
        ("epoch", str(entity.epoch)),
        ("waiting", str(entity.waiting)),
        ("dead letters", str(entity.dead_letters)),
    ]


def _outcome(request: LastRequest) -> str:
    if request.outcome is not None:
        return request.outcome.name.lower()
    return "pending" if request.replied_at is None else "expired"


def _document(entity: InspectedEntity, state: Mapping[str, object] | None, read_by: str) -> dict[str, object]:
    stored, owner = entity.state, entity.owner
    return {
        "address": str(entity.address),
        "status": entity.status,
        "pending_signals": entity.signals,
        "version": None if stored is None else str(stored.version),
        "state_version": None if stored is None else stored.state_version,
        "state": state,
        "state_as": read_by,
        "updated_at": utc(entity.updated_at),
        "shard": str(entity.shard),
        "open": entity.open,
        "owner": None if owner is None else {"name": owner.name, "incarnation": str(owner.incarnation)},
        "epoch": str(entity.epoch),
        "acquired_at": utc(entity.acquired_at),
        "waiting": entity.waiting,
        "suspended": entity.suspended,
        "dead_letters": entity.dead_letters,
        "timers": [_timer(timer) for timer in entity.timers],
        "requests": [
            {
                "request_id": str(request.request_id),
                "message": request.message,
                "created_at": utc(request.created_at),
                "replied_at": utc(request.replied_at),
                "outcome": _outcome(request),
            }
            for request in entity.last
        ],
    }


def _timer(timer: Timer) -> dict[str, object]:
    return {
        "request_id": str(timer.request_id),
        "message": timer.message,
        "due_at": utc(timer.due_at),
        "suspended": timer.suspended,
    }
