"""A process that has imported everything, and forks one ready to work for each line that it reads.

A line is an order (JSON): which program, its environment, its log file, the socket where it reports. The answer
is the new process's id. When its input ends, it kills whatever still lives and ends.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tests.crash_points import producer_program, runner_program

PROGRAMS: Mapping[str, Callable[[str], None]] = {
    "producer": producer_program.main,
    "runner": runner_program.main,
}


def serve() -> None:
    children: set[int] = set()
    try:
        for line in sys.stdin:
            order = json.loads(line)
            _reap(children)
            child = os.fork()
            if child == 0:
                _become(order)
            children.add(child)
            sys.stdout.write(f"{child}\n")
            sys.stdout.flush()
    finally:
        _reap(children)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _reap(children: set[int]) -> None:
    """Until then nobody else can get their process ids."""
    for child in list(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.discard(child)


def _become(order: Mapping[str, Any]) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, theirs)
    # Group of its own: a Ctrl-C is for the tests, which then end their processes.
    os.setpgid(0, 0)
    os.environ.update(order["environment"])
    code = 1
    try:
        PROGRAMS[order["program"]](order["report_to"])
        code = 0
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
