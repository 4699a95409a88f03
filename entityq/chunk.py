"""A chunk: one value of a streaming reply, as callers are told of it."""

from dataclasses import dataclass

from msgpack import packb

from entityq.codec import unpack_record
from entityq.errors import MalformedMessage
from entityq.reply import MAX_BYTES

# Frozen: version 1 is a msgpack array of 3: version, number, value. It goes where replies go, and no reply begins
# like it. Versions are told apart as in envelopes.
VERSION = 1
_START = b"\x93\x01"

_WHAT = "The chunk"


@dataclass(frozen=True, slots=True)
class Chunk:
    """`number` counts from 1 within its stream; `value` is packed."""

    number: int
    value: bytes

    def encode(self) -> bytes:
        return packb((VERSION, self.number, self.value))


def is_chunk(data: bytes) -> bool:
    """Of what comes on a reply channel."""
    return data.startswith(_START)


def decode_chunk(data: bytes) -> Chunk:
    """Raises PayloadTooLarge, and MalformedMessage for everything else that is none."""
    fields = unpack_record(data, MAX_BYTES, _WHAT)
    if len(fields) != 3 or type(fields[1]) is not int or type(fields[2]) is not bytes:
        raise MalformedMessage(f"{_WHAT} cannot be decoded: a field is missing or has another type")
    return Chunk(fields[1], fields[2])
