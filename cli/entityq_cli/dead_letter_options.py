"""What the commands about dead letters have in common: filters, and how what was done is shown."""

import getpass
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from entityq.dead_letter import Handled
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.options import option
from entityq_cli.output import print_json

F = TypeVar("F", bound=Callable[..., Any])

REQUEST_ID = click.IntRange(min=1, max=2**63 - 1)


def _time(_context: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    """ISO 8601; without a zone it is UTC, as all times that commands show."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time, such as 2026-11-24T12:00:00Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def filter_options(function: F) -> F:
    decorators = (
        option("--type", "type_", variable="TYPE", metavar="TYPE", help="Of this entity type, or task."),
        option(
            "--since",
            variable="SINCE",
            metavar="TIME",
            callback=_time,
            help="Given up then or later: ISO 8601, in UTC unless it says otherwise.",
        ),
        option(
            "--error",
            variable="ERROR",
            metavar="TEXT",
            help="With this in the type or the text of the error, in any case.",
        ),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def most_option(default: int) -> Callable[[F], F]:
    return option(
        "--most",
        variable="MOST",
        type=click.IntRange(1, 100_000),
        metavar="N",
        default=default,
        show_default=True,
        help="No more than so many.",
    )


def operator() -> str:
    """For the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def show_handled(handled: Handled, verb: str, *, as_json: bool) -> None:
    """Raises CommandError when some were refused."""
    if as_json:
        refused = {str(request_id): reason for request_id, reason in handled.refused.items()}
        print_json({verb: [str(request_id) for request_id in handled.done], "refused": refused})
    else:
        for request_id in handled.done:
            click.echo(f"{verb} {request_id}")
    if handled.refused:
        request_id, reason = next(iter(handled.refused.items()))
        more = f" ({len(handled.refused) - 1} more like it)" if len(handled.refused) > 1 else ""
        raise CommandError(f"Request {request_id} was not {verb}: {reason}{more}.", ExitCode.FAILED)
