"""Options that several commands have. Each one has an ENTITYQ_* variable, which its help shows."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from entityq_cli.log_format import FORMATS, LEVELS

F = TypeVar("F", bound=Callable[..., Any])

_APP_HELP = "The app, as module:attribute."
_APP_DEFAULT = "Default: app in [tool.entityq] of pyproject.toml."


def option(*names: str, variable: str, **attributes: Any) -> Callable[[F], F]:
    """A click option with the variable ENTITYQ_<variable>."""
    return click.option(*names, envvar=f"ENTITYQ_{variable}", show_envvar=True, **attributes)


def _nearest_app(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The command's own -A, the one before the command, the variable: the first of these that is there."""
    own = ctx.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    return value if own else _before(ctx) or value or None


def _before(ctx: click.Context) -> str | None:
    while ctx.parent is not None:
        ctx = ctx.parent
        if ctx.params.get("app"):
            return str(ctx.params["app"])
    return None


def app_on_group(function: F) -> F:
    # Without the variable: it would win over a -A after the command. The command's own option reads it.
    decorate = click.option("-A", "--app", metavar="MODULE:ATTRIBUTE", help=_APP_HELP)
    return decorate(function)


def app_option(function: F) -> F:
    decorate = option(
        "-A",
        "--app",
        variable="APP",
        metavar="MODULE:ATTRIBUTE",
        callback=_nearest_app,
        help=f"{_APP_HELP} {_APP_DEFAULT}",
    )
    return decorate(function)


def json_option(function: F) -> F:
    decorate = option(
        "-j", "--json", "as_json", variable="JSON", is_flag=True, help="One JSON document on stdout."
    )
    return decorate(function)


def timeout_option(default: float | None, explanation: str) -> Callable[[F], F]:
    return option(
        "--timeout",
        variable="TIMEOUT",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        default=default,
        show_default=default is not None,
        help=explanation,
    )


def runner_options(function: F) -> F:
    """What `worker` and `dev` have in common, but for the number of processes."""
    decorators = (
        app_option,
        option(
            "-Q",
            "--groups",
            variable="GROUPS",
            metavar="NAMES",
            help="The shard groups to serve, separated by commas. Default: all.",
        ),
        option(
            "-n",
            "--name",
            variable="NAME",
            default="%h-%p",
            show_default=True,
            help="What the runners are called: %h is the host, %p the place in the worker.",
        ),
        option(
            "-l",
            "--log-level",
            variable="LOG_LEVEL",
            type=click.Choice(LEVELS, case_sensitive=False),
            default="info",
            show_default=True,
            help="The least of what is logged.",
        ),
        option(
            "--log-format",
            variable="LOG_FORMAT",
            type=click.Choice(FORMATS),
            default="text",
            show_default=True,
            help="Lines on stderr, as text or as JSON.",
        ),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def given_groups(ctx: click.Context, groups: str | None) -> str | None:
    """Only those of the command line: the variable is a setting, over which the app's own arguments win."""
    return groups if ctx.get_parameter_source("groups") is ParameterSource.COMMANDLINE else None
