"""`entityq inspect ...`: what is known about one thing."""

import click

from entityq_cli.lazy_group import LazyCommand, LazyGroup

_COMMANDS = (
    LazyCommand(
        "entity", "entityq_cli.inspect_entity", "Show an entity: its state, its owner, its requests."
    ),
    LazyCommand("request", "entityq_cli.inspect_request", "Show the life of a request."),
)


@click.group("inspect", cls=LazyGroup, commands=_COMMANDS)
def command() -> None:
    """Show all that is known about an entity or a request."""
