"""Names and command lines of runners."""

import socket
import sys

import pytest
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.worker_options import WorkerOptions, default_processes, runner_command, runner_name

OPTIONS = WorkerOptions(app=None, processes=2, groups=None, name="%h-%p", log_level="info", log_format="text")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("%h-%p", f"{socket.gethostname()}-3"),
        ("plain", "plain"),
        ("100%%", "100%"),
        ("%%p", "%p"),
    ],
)
def test_names(pattern: str, name: str) -> None:
    assert runner_name(pattern, 3) == name


@pytest.mark.parametrize("pattern", ["%x", "name%"])
def test_an_unknown_placeholder_is_a_usage_error(pattern: str) -> None:
    with pytest.raises(CommandError) as raised:
        runner_name(pattern, 1)

    assert raised.value.code is ExitCode.USAGE


def test_what_was_not_given_is_left_to_the_runner() -> None:
    command = runner_command(OPTIONS, 1, "w/1", 5)

    assert command[:4] == [sys.executable, "-P", "-m", "entityq_cli"]
    assert not {"--app", "--groups", "--migrate"} & set(command)


def test_one_process_for_each_core() -> None:
    assert default_processes() >= 1
