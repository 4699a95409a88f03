"""The stream entry: an envelope and, for a persisted request, its place among its sender's.

Frozen: the field `e` is the envelope; `o`, of persisted requests only, is sender, n and seq as three unsigned
64-bit big-endian numbers. n counts a sender's requests to one shard, without a hole, from 1.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from entityq.errors import MalformedMessage

ENVELOPE = b"e"
ORDER = b"o"

_ORDER = struct.Struct("!QQQ")
pack_order = _ORDER.pack


@dataclass(frozen=True, slots=True)
class Entry:
    """A volatile request has sender, n and seq 0."""

    envelope: bytes
    sender: int = 0
    n: int = 0
    seq: int = 0

    @property
    def persisted(self) -> bool:
        """Whether the outbox has the request too."""
        return self.n > 0

    def fields(self) -> dict[bytes, bytes]:
        """As XADD takes them."""
        if not self.persisted:
            return {ENVELOPE: self.envelope}
        return {ENVELOPE: self.envelope, ORDER: pack_order(self.sender, self.n, self.seq)}


def decode_entry(fields: Mapping[bytes, bytes]) -> Entry:
    """Fields that are not known are ignored. Raises MalformedMessage for what is no entry."""
    envelope = fields.get(ENVELOPE)
    if envelope is None:
        raise MalformedMessage("A stream entry has no envelope")
    order = fields.get(ORDER)
    if order is None:
        return Entry(envelope)
    if len(order) != _ORDER.size:
        raise MalformedMessage(f"The order of a stream entry has {_ORDER.size} bytes, not {len(order)}")
    sender, n, seq = _ORDER.unpack(order)
    if n == 0:
        raise MalformedMessage("A stream entry has the number 0: they count from 1")
    return Entry(envelope, sender, n, seq)
