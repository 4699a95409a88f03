"""Request ids. Frozen: 41 bits of ms since 2025-01-01T00:00Z, 10 bits machine, 12 bits sequence.

Ids are unique among running processes as far as their machine numbers are. Nothing depends on it: neither
order nor dedup is decided by an id, and a collision in the outbox is answered with a new id.
"""

import os
import secrets
import time
from collections.abc import Callable
from threading import Lock
from weakref import WeakMethod

EPOCH_MS = 1_735_689_600_000
MACHINES = 1024
LEASED_MACHINES = 512
SEQUENCES = 4096


def client_machine() -> int:
    """A machine number for a process that leases none: one of 512..1023, drawn at random."""
    return LEASED_MACHINES + secrets.randbelow(MACHINES - LEASED_MACHINES)


class Snowflakes:
    """Makes increasing ids; safe among threads, and after a fork.

    Runners lease their machine number (0..511) in the database, other clients take `client_machine()`. A
    forked child draws a client's number, whatever its parent had: with one number both would make equal ids.
    """

    def __init__(
        self,
        machine: int,
        *,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        if not 0 <= machine < MACHINES:
            raise ValueError(f"a machine number is 0 to {MACHINES - 1}, not {machine}")
        self.machine = machine
        self._clock = clock
        self._wait = wait
        self._lock = Lock()
        self._ms = -1
        self._sequence = 0
        child = WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (redraw := child()) and redraw())

    def new(self) -> int:
        """A positive id of 63 bits, above all ids that this object made before.

        The 4,097th id of one millisecond waits for the next one. A clock that stepped back is not followed:
        time stands still, and goes on by one millisecond for each one that was waited.
        """
        with self._lock:
            now = self._now()
            if now > self._ms:
                self._ms, self._sequence = now, 0
            elif self._sequence < SEQUENCES - 1:
                self._sequence += 1
            else:
                self._wait(0.001)
                self._ms, self._sequence = max(self._now(), self._ms + 1), 0
            return self._ms << 22 | self.machine << 12 | self._sequence

    def _now(self) -> int:
        return max(0, int(self._clock() * 1000) - EPOCH_MS)

    def _after_fork(self) -> None:
        # Another thread may have held the lock at the fork: nobody would ever release the child's copy.
        self._lock = Lock()
        self.machine = client_machine()
