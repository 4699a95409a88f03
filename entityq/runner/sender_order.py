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

    Forgetting a sender is safe: its next entry is then a gap, which only costs a read of the outbox, or, where
    it is the sender's first one, its seq is not above `forgotten`.
    """

    def __init__(self, max_senders: int = 10_000) -> None:
        self._last: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._max_senders = max_senders
        # The highest seq taken of a sender that was forgotten.
        self.forgotten = 0

    def position(self, sender: int, n: int) -> Position:
        expected = self._last.get(sender, (0, 0))[0] + 1
        if n == expected:
            return Position.NEXT
        return Position.OLD if n < expected else Position.GAP

    def advance(self, sender: int, n: int, seq: int) -> None:
        """Everything of `sender` up to `n`, with that seq, was taken, or was read from the outbox."""
        if n > self._last.get(sender, (0, 0))[0]:
            self._last[sender] = n, seq
        self._last.move_to_end(sender)
        if len(self._last) > self._max_senders:
            _, (_, last) = self._last.popitem(last=False)
            self.forgotten = max(self.forgotten, last)
