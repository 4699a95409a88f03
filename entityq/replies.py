"""From what a handler returned or raised to a Reply, and back at the caller."""

from typing import Any

from entityq import errors
from entityq.codec import Limits, pack, unpack
from entityq.definition import MessageDefinition
from entityq.errors import Accepted, EntityDefect, EntityQError, Interrupted, MalformedMessage
from entityq.failure import Failure, UnknownFailure, find_failure
from entityq.reply import Outcome, Reply
from entityq.schema import Record

# Errors that a request can be answered with; the others are raised where they happen and are never stored.
_ANSWERS: dict[str, type[EntityQError]] = {
    error.__name__: error
    for error in (
        errors.MalformedMessage,
        errors.PayloadTooLarge,
        errors.MailboxFull,
        errors.RunnerNotRegistered,
        errors.EntityNotAssigned,
        errors.AlreadyProcessing,
        errors.EntityDefect,
        errors.PersistenceError,
    )
}

_DEFECT = Record({"message": str}, {}, "defect")


def success_reply(request_id: int, value: object, message: MessageDefinition, limits: Limits) -> Reply:
    """Raises MalformedMessage when the value does not fit the return annotation, PayloadTooLarge."""
    return Reply(request_id, Outcome.SUCCESS, "", message.reply.encode(value, limits))


def failure_reply(request_id: int, failure: Failure, limits: Limits) -> Reply:
    """Raises MalformedMessage or PayloadTooLarge when the fields cannot be sent."""
    if isinstance(failure, UnknownFailure):  # passed on as it came
        data = pack(failure.data, limits, f"failure {failure.type}")
        return Reply(request_id, Outcome.FAILURE, failure.type, data)
    data = failure.__schema__.encode(failure, limits)
    return Reply(request_id, Outcome.FAILURE, type(failure).__name__, data)


def defect_reply(request_id: int, error: type[EntityQError], text: str, limits: Limits) -> Reply:
    """`error` is what the caller is to get, `text` what it is to say."""
    outcome = Outcome.INTERRUPTED if error is Interrupted else Outcome.DEFECT
    return Reply(request_id, outcome, error.__name__, _DEFECT.encode({"message": text}, limits))


def result_of(reply: Reply, message: MessageDefinition, limits: Limits) -> Any:
    """The value of a success. Raises the Failure or the EntityQError that the reply is."""
    if reply.outcome is Outcome.SUCCESS:
        return message.reply.decode(reply.value, limits)
    if reply.outcome is Outcome.FAILURE:
        raise _failure(reply, message, limits)
    raise _error(reply, message, limits)


def _failure(reply: Reply, message: MessageDefinition, limits: Limits) -> Failure:
    cls = find_failure(reply.type, message.handler.__module__)
    if cls is not None:
        try:
            return cls.__schema__.decode(reply.value, limits)
        except MalformedMessage:
            pass  # the runner's code has other fields: what it said still arrives, below
    return UnknownFailure(type=reply.type, data=unpack(reply.value, limits, f"failure {reply.type}"))


def _error(reply: Reply, message: MessageDefinition, limits: Limits) -> EntityQError:
    text = str(_DEFECT.read(unpack(reply.value, limits, _DEFECT.what))["message"])
    cls = Interrupted if reply.outcome is Outcome.INTERRUPTED else _ANSWERS.get(reply.type, EntityDefect)
    accepted = Accepted.YES if message.persisted else Accepted.NO
    return cls(text, accepted=accepted, request_id=reply.request_id)
