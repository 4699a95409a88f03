"""What pings say about a runner's peers: decided from what was heard, without a loop or a channel.

A ping and its answer are control messages, so that they take the way that work takes: through the peer's
event loop and its connection to Redis. Frozen format: {"kind": "ping" or "pong", "from", "to", "nonce"}, the
first two incarnations; a pong has its ping's nonce.
"""

from collections.abc import Iterable, Mapping

from entityq.redis.control import ControlMessage
from entityq.runner.health import Judgement

# Unanswered pings in a row that make a runner unhealthy.
UNANSWERED = 3


def answer(me: int, message: ControlMessage) -> ControlMessage | None:
    """The pong for a ping to this runner."""
    fields = message.fields
    if message.kind != "ping" or fields.get("to") != me:
        return None
    return ControlMessage("pong", {"from": me, "to": fields.get("from"), "nonce": fields.get("nonce")})


class Pings:
    """Rounds of pings to the peers of one runner: `begin`, `hear` what comes, `end`."""

    def __init__(self, me: int) -> None:
        self._me = me
        self._nonce = 0
        self._unanswered: dict[int, int] = {}
        self._echoed: set[int] = set()
        self._answered: set[int] = set()

    def begin(self, peers: Iterable[int]) -> list[ControlMessage]:
        """The pings to send. What is known about anybody else is forgotten."""
        self._nonce += 1
        self._unanswered = {peer: self._unanswered.get(peer, 0) for peer in peers}
        self._echoed.clear()
        self._answered.clear()
        return [
            ControlMessage("ping", {"from": self._me, "to": peer, "nonce": self._nonce})
            for peer in self._unanswered
        ]

    def hear(self, message: ControlMessage) -> bool:
        """Whether every peer has answered. Fields come from outside and can be anything."""
        sender, receiver = message.fields.get("from"), message.fields.get("to")
        for peer in self._unanswered:
            if message.kind == "ping" and (sender, receiver) == (self._me, peer):
                if message.fields.get("nonce") == self._nonce:
                    self._echoed.add(peer)
            elif message.kind == "pong" and (sender, receiver) == (peer, self._me):
                # One that is late answers, too.
                self._answered.add(peer)
        return len(self._answered) == len(self._unanswered)

    def end(self) -> Mapping[int, Judgement]:
        """Healthy at the first answer. Unhealthy after several pings in a row, each of which came back to us
        on the same channel: otherwise the channel, or our own part of it, is what does not work.
        """
        judgements: dict[int, Judgement] = {}
        for peer, before in self._unanswered.items():
            unanswered = before + 1 if peer in self._echoed and peer not in self._answered else 0
            self._unanswered[peer] = unanswered
            if peer in self._answered:
                judgements[peer] = Judgement(healthy=True)
            elif unanswered >= UNANSWERED:
                judgements[peer] = Judgement(
                    healthy=False, reason=f"the last {unanswered} pings were not answered"
                )
        return judgements
