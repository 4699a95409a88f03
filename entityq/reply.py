"""The reply: what a request came to, as it is stored and sent to whoever waits."""

from dataclasses import dataclass
from enum import IntEnum

from msgpack import packb

from entityq.codec import unpack_record
from entityq.envelope import refuse
from entityq.errors import MalformedMessage

# Frozen: version 1 is a msgpack array of 4: version, outcome, type, value. The request id is not in it: the
# bytes of a reply are the same for everyone who repeats the request. Versions are told apart as in envelopes.
VERSION = 1
_START = b"\x94\x01"

# What is stored in place of a reply that is no longer kept. Frozen: no encoded reply is empty.
EXPIRED = b""

# The highest value that settings allow for max_reply, and the rest of the array.
MAX_BYTES = 16 * 1024**2 + 1024
_WHAT = "The reply"


class Outcome(IntEnum):
    """How a request ended. Frozen numbers: they are stored."""

    SUCCESS = 0
    FAILURE = 1
    DEFECT = 2
    INTERRUPTED = 3


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request.

    | outcome | type | value, packed |
    |---|---|---|
    | success | "" | what the handler returned |
    | failure | the failure's class | its fields |
    | defect, interrupted | the error class to raise at the caller | {"message": str} |
    """

    request_id: int
    outcome: Outcome
    type: str
    value: bytes

    def encode(self) -> bytes:
        """Without the request id."""
        return packb((VERSION, int(self.outcome), self.type, self.value))


def decode_reply(request_id: int, data: bytes) -> Reply:
    """Raises UnknownFormat for a newer version, PayloadTooLarge, and MalformedMessage for everything else."""
    if not data.startswith(_START):
        refuse(data, _WHAT)
    _, outcome, type_, value = unpack_record(data, MAX_BYTES, _WHAT)
    if type(outcome) is not int or type(type_) is not str or type(value) is not bytes:
        raise MalformedMessage(f"{_WHAT} cannot be decoded: a field has another type")
    try:
        return Reply(request_id, Outcome(outcome), type_, value)
    except ValueError:
        raise MalformedMessage(f"{_WHAT} cannot be decoded: there is no outcome {outcome}") from None
