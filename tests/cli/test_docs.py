"""docs/cli.md has every command and every option with its variable."""

import re

import click
import pytest
from entityq_cli.exit_code import ExitCode
from entityq_cli.main import cli

from tests.support.processes import ROOT

TEXT = (ROOT / "docs" / "cli.md").read_text()
COMMANDS = cli.list_commands(click.Context(cli))


def test_every_command_has_a_section_and_nothing_else_has() -> None:
    assert re.findall(r"^## ([\w-]+)$", TEXT, re.MULTILINE) == COMMANDS


def options_of(group: click.Group, name: str) -> list[click.Option]:
    """Of a command, or of all commands of a group."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    if isinstance(command, click.Group):
        inner = command.list_commands(click.Context(command))
        return [option for each in inner for option in options_of(command, each)]
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_row_with_its_variable(name: str) -> None:
    section = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{name}\n")]
    options = {str(option.envvar): option for option in options_of(cli, name)}.values()
    documented = set(re.findall(r"`(ENTITYQ_\w+)` \| ", text))
    assert documented == {str(option.envvar) for option in options}
    for option in options:
        row = re.search(rf"^\| (.*) \| `{option.envvar}` \|", text, re.MULTILINE)
        assert row is not None
        assert all(f"`{spelling}" in row[1] for spelling in option.opts), option.opts


def test_every_exit_code_is_explained() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \| ", TEXT, re.MULTILINE)] == list(ExitCode)
