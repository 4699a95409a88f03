"""`entityq dead-letters ...`: requests that were given up."""

import click

from entityq_cli.lazy_group import LazyCommand, LazyGroup

_COMMANDS = (
    LazyCommand("list", "entityq_cli.dead_letters_list", "List them, the newest first."),
    LazyCommand("show", "entityq_cli.dead_letters_show", "Show one, with its cause."),
    LazyCommand("requeue", "entityq_cli.dead_letters_requeue", "Run all that fit a filter again."),
    LazyCommand("discard", "entityq_cli.dead_letters_discard", "Take them off the list."),
)


@click.group("dead-letters", cls=LazyGroup, commands=_COMMANDS)
def command() -> None:
    """Requests that were given up after their last attempt: look at them, run them again, discard them."""
