"""A message to all live activations of an entity type at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from entityq.codec import Limits, unpack
from entityq.reply import Outcome, Reply
from entityq.schema import Record

# Frozen: the entity id in the envelope of a broadcast, and a runner's answer: a reply whose value is a map.
EVERYONE = "*"
_ANSWER = Record({"reached": int, "refused": int}, {}, "answer to a broadcast")
_LIMITS = Limits(max_bytes=1024)


@dataclass(frozen=True, slots=True)
class Reached:
    """What one runner says: activations that have the message in their mailbox, and others that could not take it."""

    reached: int
    refused: int

    def reply(self, request_id: int) -> Reply:
        value = _ANSWER.encode({"reached": self.reached, "refused": self.refused}, _LIMITS)
        return Reply(request_id, Outcome.SUCCESS, "", value)


def read_reached(reply: Reply) -> Reached:
    """Raises MalformedMessage."""
    plain = _ANSWER.read(unpack(reply.value, _LIMITS, _ANSWER.what))
    return Reached(cast("int", plain["reached"]), cast("int", plain["refused"]))


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Whom a broadcast reached; what their handlers do with it is not told.

    runners: live runners of the type's shard group that answered in time.
    activations: those that have the message in their mailbox.
    refused: activations that could not take it: their mailbox is full, or their runner's code does not know it.
    unanswered: live runners that did not answer in time; nobody knows whom they reached.
    """

    runners: int
    activations: int
    refused: int
    unanswered: int


def tally(asked: int, answers: Sequence[Reached]) -> Broadcast:
    """`asked`: how many runners were expected to answer."""
    return Broadcast(
        runners=len(answers),
        activations=sum(answer.reached for answer in answers),
        refused=sum(answer.refused for answer in answers),
        unanswered=asked - len(answers),
    )
