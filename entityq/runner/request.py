"""A request on its way through a runner, from intake to its answer."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from entityq.address import Address
from entityq.envelope import Envelope


@dataclass(slots=True, eq=False)
class Request:
    """One decoded request. `seq` is 0 for a volatile one; `entry_id` is None when it came from the outbox.

    Only the outbox knows of earlier attempts: `lost` ended their process, `retries` in a defect, the first of
    which began at `failing_since`, on the clock of `time.monotonic`.
    """

    envelope: Envelope
    shard_id: int
    seq: int
    entry_id: bytes | None
    lost: int = 0
    retries: int = 0
    failing_since: float | None = None
    # Has waited for a signal whose time has passed.
    suspended: bool = False
    # Somebody has asked for its end.
    cancelled: bool = False
    # Runs its handler now, which may be interrupted.
    interruptible: asyncio.Task[Any] | None = field(default=None, init=False, repr=False)

    @property
    def request_id(self) -> int:
        return self.envelope.request_id

    @property
    def attempt(self) -> int:
        """From 1."""
        return self.lost + self.retries + 1

    def cancel(self) -> None:
        """Interrupts its handler, once, while that runs and may be interrupted; otherwise it is only noted."""
        if not self.cancelled and self.interruptible is not None:
            self.interruptible.cancel()
        self.cancelled = True


# Whose code of users runs: a request's turn, with the tasks that it starts, or the end of an entity's instance.
# What a look at a blocked loop finds.
running: ContextVar[Request | Address | None] = ContextVar("entityq_running", default=None)
