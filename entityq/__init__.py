"""Durable entities for Python."""

from entityq.app import EntityQ
from entityq.broadcast import Broadcast
from entityq.cancel_outcome import CancelOutcome
from entityq.context import TurnContext
from entityq.dead_letter import DeadLetter, Handled
from entityq.entity import Entity, message
from entityq.errors import (
    Accepted,
    AlreadyProcessing,
    EntityDefect,
    EntityNotAssigned,
    EntityQError,
    Interrupted,
    MailboxFull,
    MalformedMessage,
    PayloadTooLarge,
    PersistenceError,
    PrimaryKeyConflict,
    ReplyExpired,
    RunnerNotRegistered,
    RunnerUnavailable,
    SendTimeout,
    SignalTimeout,
    UnsafeConfiguration,
)
from entityq.failure import Failure, UnknownFailure
from entityq.limit import MaxRunning, RateLimit
from entityq.receipt import Receipt
from entityq.request import Request
from entityq.retry import RetryPolicy
from entityq.schedules import UnknownSchedule
from entityq.sent import Sent
from entityq.signal_outcome import SignalOutcome
from entityq.singleton import SingletonContext
from entityq.status import EntityStatus, PendingSignal
from entityq.stream import StreamReceipt
from entityq.upcast import Upcaster, upcast

__all__ = [
    "Accepted",
    "AlreadyProcessing",
    "Broadcast",
    "CancelOutcome",
    "DeadLetter",
    "Entity",
    "EntityDefect",
    "EntityNotAssigned",
    "EntityQ",
    "EntityQError",
    "EntityStatus",
    "Failure",
    "Handled",
    "Interrupted",
    "MailboxFull",
    "MalformedMessage",
    "MaxRunning",
    "PayloadTooLarge",
    "PendingSignal",
    "PersistenceError",
    "PrimaryKeyConflict",
    "RateLimit",
    "Receipt",
    "ReplyExpired",
    "Request",
    "RetryPolicy",
    "RunnerNotRegistered",
    "RunnerUnavailable",
    "SendTimeout",
    "Sent",
    "SignalOutcome",
    "SignalTimeout",
    "SingletonContext",
    "StreamReceipt",
    "TurnContext",
    "UnknownFailure",
    "UnknownSchedule",
    "UnsafeConfiguration",
    "Upcaster",
    "message",
    "upcast",
]
