"""One persisted call on its way into the outbox, and what became of it."""

import asyncio
from dataclasses import dataclass

from entityq.call import Call
from entityq.postgres.outbox import NewRequest, Stored


@dataclass(frozen=True, slots=True)
class Acceptance:
    """`request_id` is the first request's when the key was known; `reply` is encoded, None: unanswered."""

    request_id: int
    stored: Stored | None
    duplicate: bool = False
    reply: bytes | None = None

    @property
    def to_publish(self) -> Stored | None:
        """Where it is stored, if a stream is to have it."""
        return None if self.stored is None or self.stored.timed else self.stored


@dataclass(slots=True, eq=False)
class Send:
    """`deadline` is the time of the loop by which it must be accepted.

    `timeout` is how many seconds its caller waits for the reply, None for one who does not say. `started`: a
    statement has it right now; `lost`: the outcome of such a statement will never be told, only a repeat with
    the same request id finds out; `abandoned`: its caller waits no more, so it need not be tried again;
    `trouble` is why it is not stored yet; `acceptance` is there as soon as it is stored or has joined, which can
    be long before its batch is through.
    """

    call: Call
    request: NewRequest
    deadline: float
    timeout: float | None = None
    started: bool = False
    lost: bool = False
    abandoned: bool = False
    trouble: str = ""
    acceptance: Acceptance | None = None

    @property
    def withdrawn(self) -> bool:
        """Whether it is not to be inserted any more."""
        return self.abandoned and not self.lost


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """It waits, apart from the others, for somebody else's uncommitted insert of its key."""

    outcome: asyncio.Future[Acceptance]


Outcome = Acceptance | Held | BaseException
