"""Everything that entityq raises at its callers.

EntityQError
├── MalformedMessage        the call does not fit the message's types; a stored request cannot be decoded
├── PayloadTooLarge         the encoded payload, reply or state is above the limit
├── PrimaryKeyConflict      the key is known with another payload
├── ReplyExpired            the key is known, its reply is no longer kept
├── PersistenceError        Postgres did not commit the request, or it is unknown whether it did
├── MailboxFull             the entity's mailbox, or the group's pending requests, are at their limit
├── SendTimeout             no reply, or no acceptance, within the timeout
├── SignalTimeout           in a handler: no signal within the wait's timeout
├── RunnerUnavailable       no live runner serves the shard group
├── RunnerNotRegistered     live runners serve the group, none knows the type or message
├── EntityNotAssigned       volatile: the shard is between owners
├── AlreadyProcessing       volatile: the same request id is being processed
├── EntityDefect            the request became a dead letter
├── Interrupted             cancelled, or answered by a cancel; expired
└── UnsafeConfiguration     refused to start, or to go on, in a way that could lose or double work
"""

from enum import Enum


class Accepted(Enum):
    """Whether the request that an error is about is committed in Postgres (it will then be answered)."""

    YES = "accepted"
    NO = "not accepted"
    UNKNOWN = "unknown whether accepted"


class EntityQError(Exception):
    """Base class: what happened, to which request, whether it is accepted, and what to do.

    `retryable` says whether sending again (with the same primary key) can help.
    """

    accepted: Accepted = Accepted.NO
    retryable: bool = False

    def __init__(
        self, what: str, *, accepted: Accepted | None = None, request_id: int | None = None, advice: str = ""
    ) -> None:
        if accepted is not None:
            self.accepted = accepted
        self.what = what
        self.request_id = request_id
        self.advice = advice
        super().__init__(what)

    def __str__(self) -> str:
        request = f" (request {self.request_id})" if self.request_id is not None else ""
        advice = f" {self.advice}" if self.advice else ""
        return f"{self.what}{request}: {self.accepted.value}.{advice}"


class MalformedMessage(EntityQError):
    """The call does not fit the message's types, or stored bytes cannot be decoded."""


class PayloadTooLarge(EntityQError):
    """The encoded payload, reply or state is above the configured limit."""


class PrimaryKeyConflict(EntityQError):
    """The primary key is known with another payload; `request_id` is the first request's."""


class ReplyExpired(EntityQError):
    """The primary key is known and was answered, but the reply is no longer kept."""


class PersistenceError(EntityQError):
    """Postgres did not commit the request, or it is unknown whether it did (`accepted` says which)."""

    retryable = True


class MailboxFull(EntityQError):
    """The entity's mailbox (volatile), or the shard group's pending requests (persisted), are at their limit."""

    retryable = True


class SendTimeout(EntityQError, TimeoutError):
    """No reply, or no acceptance, within the timeout; `accepted` says which."""

    accepted = Accepted.YES


class SignalTimeout(EntityQError, TimeoutError):
    """Raised by a handler's wait for a signal: it did not come within the wait's timeout, and will not any more."""

    accepted = Accepted.YES


class RunnerUnavailable(EntityQError):
    """No live runner serves the shard group, and the caller's timeout ended."""


class RunnerNotRegistered(EntityQError):
    """Live runners serve the shard group but none knows the type or message, and the timeout ended."""


class EntityNotAssigned(EntityQError):
    """Volatile only: the shard is between owners, and the timeout ended."""

    retryable = True


class AlreadyProcessing(EntityQError):
    """Volatile only: the same request id is being processed."""


class EntityDefect(EntityQError):
    """The handler raised something that it does not declare; the request is a dead letter."""

    accepted = Accepted.YES


class Interrupted(EntityQError):
    """The request was cancelled, or answered by a cancel, or it had expired before it could start."""

    accepted = Accepted.YES


class UnsafeConfiguration(EntityQError):
    """Refused: going on could lose work or do it twice. The sentence says what to change."""

    def __str__(self) -> str:
        return f"{self.what} {self.advice}".rstrip()
