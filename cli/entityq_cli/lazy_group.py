"""A click group that imports a command when it is called: `entityq --help` needs none of them."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """`module` has the click command under the name `command`; `summary` is its line in the group's help."""

    name: str
    module: str
    summary: str
    hidden: bool = False


class LazyGroup(click.Group):
    """Takes LazyCommands, in the order in which its help shows them."""

    def __init__(self, *, commands: Sequence[LazyCommand], **attributes: Any) -> None:
        super().__init__(**attributes)
        self._lazy = {command.name: command for command in commands}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [command.name for command in self._lazy.values() if not command.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = self._lazy.get(cmd_name)
        if lazy is None:
            return None
        found: object = importlib.import_module(lazy.module).command
        if not isinstance(found, click.Command):
            raise TypeError(f"{lazy.module}.command is not a click command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._lazy[name].summary) for name in self.list_commands(ctx)])
