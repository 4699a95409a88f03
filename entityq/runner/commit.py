"""What must be atomic at the end of a turn, as a value."""

from dataclasses import dataclass, field

from entityq.cause import Cause
from entityq.postgres.outbox import NewRequest
from entityq.reply import Reply
from entityq.runner.request import Request


@dataclass(frozen=True, slots=True)
class Tenure:
    """The lease under which a turn started: it commits under this one or not at all."""

    incarnation: int
    shard_id: int
    epoch: int


@dataclass(slots=True, eq=False)
class Commit:
    """Reply, state and outgoing requests of one persisted turn.

    `given_up`: why the request becomes a dead letter, after so many `attempts`.
    `version` is the entity's version when the turn started, None when the turn does not own the state;
    `state` None leaves the stored bytes as they are; `state_version` is that of the class which wrote it.
    """

    tenure: Tenure
    request: Request
    reply: Reply
    encoded_reply: bytes
    version: int | None = None
    state: bytes | None = None
    state_version: int = 1
    forget: bool = False
    sends: list[NewRequest] = field(default_factory=list[NewRequest])
    given_up: Cause | None = None
    attempts: int = 1

    @property
    def size(self) -> int:
        """Bytes, about: what bounds a batch."""
        sent = sum(len(request.envelope) for request in self.sends)
        cause = 0 if self.given_up is None else len(self.given_up.detail)
        return len(self.encoded_reply) + len(self.state or b"") + sent + cause + 200


@dataclass(frozen=True, slots=True)
class SentRow:
    """An outgoing request as the outbox stored it."""

    request: NewRequest
    shard_id: int
    seq: int


@dataclass(frozen=True, slots=True)
class Applied:
    """Committed, wholly. `sent` are the outgoing requests that were new and are due, in outbox order."""

    sent: list[SentRow]


@dataclass(frozen=True, slots=True)
class NotApplied:
    """Nothing of the turn was written: it was answered or changed by others, or its lease is gone.

    `passing`: what was in the way is still there for a while.
    """

    reason: str
    passing: bool = False


@dataclass(frozen=True, slots=True)
class SendConflict:
    """Nothing was written: a request that the turn sends meets a known key with another payload."""

    first_request_id: int


Committed = Applied | NotApplied | SendConflict
