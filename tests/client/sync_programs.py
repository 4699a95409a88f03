"""Sync programs that the tests run as processes of their own: `python sync_programs.py NAME`, configured by
the environment. They print what they saw."""

import os
import sys
import threading
from collections.abc import Callable

from entityq import Entity, EntityQ, message

app = EntityQ("sync")


@app.entity
class Account(Entity):
    balance: int = 0

    @message(primary_key="reference")
    async def deposit(self, amount: int, reference: str) -> int:
        raise NotImplementedError


def deposit(reference: str) -> int:
    return Account.at("a").deposit.delay(1, reference=reference).request_id


def exits() -> None:
    """Sends and ends, without closing anything."""
    sys.stdout.write(f"sent {deposit('r')}\n")


def fails() -> None:
    """Ends with an error."""
    deposit("r")
    raise SystemExit(3)


def forks() -> None:
    """Parent and child send before and after each other, also while another thread of the parent sends."""
    deposit("parent-1")
    busy = threading.Thread(target=lambda: [deposit(f"thread-{n}") for n in range(50)])
    busy.start()
    child = os.fork()
    if child == 0:
        for n in range(10):
            deposit(f"child-{n}")
        # As multiprocessing ends its children: without the interpreter's own exit.
        os._exit(0)
    _, status = os.waitpid(child, 0)
    busy.join()
    deposit("parent-2")
    sys.stdout.write(f"child {os.waitstatus_to_exitcode(status)}\n")


def forks_and_exits() -> None:
    """The child ends as a program does."""
    deposit("parent-1")
    child = os.fork()
    if child == 0:
        deposit("child")
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    deposit("parent-2")
    sys.stdout.write(f"child {os.waitstatus_to_exitcode(status)}\n")


PROGRAMS: dict[str, Callable[[], None]] = {
    program.__name__: program for program in (exits, fails, forks, forks_and_exits)
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
