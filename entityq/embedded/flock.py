"""File locks that the kernel drops however their holder dies.

They are `flock` locks: they belong to the open file, so a program that is executed does not inherit them
(Python opens files close-on-exec) while a forked child does, and closing the file is the only release.
"""

import fcntl
import os
import time
from pathlib import Path

SHARED = fcntl.LOCK_SH
EXCLUSIVE = fcntl.LOCK_EX

_POLL = 0.01


def try_lock(path: Path, kind: int) -> int | None:
    """The open, locked file, or None where another process holds it in a way that excludes `kind`."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def lock(path: Path, kind: int, deadline: float) -> int:
    """Waits for the lock until `deadline` (monotonic seconds); raises TimeoutError.

    It polls: a blocking `flock` has no timeout, and a signal alarm would belong to the whole program.
    """
    while True:
        file = try_lock(path, kind)
        if file is not None:
            return file
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} stays locked by another process")
        time.sleep(_POLL)


def is_locked(path: Path) -> bool:
    file = try_lock(path, EXCLUSIVE)
    if file is None:
        return True
    os.close(file)
    return False


def wait_exclusive(path: Path) -> int:
    """Blocks, without end, until nobody else holds the file; a signal handler that raises ends the wait."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(file, EXCLUSIVE)
    return file
