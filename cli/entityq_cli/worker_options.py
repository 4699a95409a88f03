"""What `entityq worker` and `entityq dev` were asked for, and the command line of one of their runners."""

import os
import re
import socket
import sys
from dataclasses import dataclass

from entityq_cli.exit_code import usage_error

_PLACEHOLDER = re.compile(r"%(.?)")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """`app` and `groups` are None where the runner is to find them in its configuration."""

    app: str | None
    processes: int
    groups: str | None
    name: str
    log_level: str
    log_format: str
    one_each_core: bool = False
    reload: bool = False


def default_processes() -> int:
    """One for each core that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def runner_name(pattern: str, index: int) -> str:
    """%h is the host's name, %p the runner's place in its worker (from 1), %% a percent sign.

    Raises CommandError for any other placeholder.
    """
    values = {"h": socket.gethostname(), "p": str(index), "%": "%"}

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise usage_error(
                f"The name {pattern!r} has %{match[1]}: known are %h (host), %p (place) and %%."
            )
        return values[match[1]]

    return _PLACEHOLDER.sub(value, pattern)


def runner_command(options: WorkerOptions, index: int, place: str, link: int) -> list[str]:
    """`place` is that of all runners that follow each other, `link` the file descriptor of the runner's end."""
    # -P: no module of the working directory stands in for one of ours; loading the app adds it to the path.
    command = [sys.executable, "-P", "-m", "entityq_cli", "runner"]
    command += ["--index", str(index), "--link", str(link)]
    command += ["--name", runner_name(options.name, index), "--place", place]
    command += ["--log-level", options.log_level, "--log-format", options.log_format]
    if options.app is not None:
        command += ["--app", options.app]
    if options.groups is not None:
        command += ["--groups", options.groups]
    if options.reload:
        command.append("--migrate")
    return command
