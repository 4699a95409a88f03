"""Whether a stream entry is the next one of its sender: how a shard's owner sees every gap."""

from collections import OrderedDict
from enum import Enum


class Position(Enum):
    """Where an entry stands in its sender's numbering."""

    NEXT = "next"
    OLD = "old"
    GAP = "gap"


class SenderOrder:
    """The last number taken of each sender, for one shard.

    Forgetting a sender is safe: its next entry is then a gap, and a gap only costs a read of the outbox.
    """

    def __init__(self, max_senders: int = 10_000) -> None:
        self._last: OrderedDict[int, int] = OrderedDict()
        self._max_senders = max_senders

    def position(self, sender: int, n: int) -> Position:
        expected = self._last.get(sender, 0) + 1
        if n == expected:
            return Position.NEXT
        return Position.OLD if n < expected else Position.GAP

    def advance(self, sender: int, n: int) -> None:
        """Everything of `sender` up to `n` was taken, or was read from the outbox."""
        if n > self._last.get(sender, 0):
            self._last[sender] = n
        self._last.move_to_end(sender)
        if len(self._last) > self._max_senders:
            self._last.popitem(last=False)
