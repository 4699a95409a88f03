"""The current turn, as the code that runs in it sees it."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime

from entityq.ports import Home, Sender


@dataclass(frozen=True, slots=True)
class TurnContext:
    """`self.context` of a handler. `attempt` counts from 1; `deadline` is when nobody waits any more (UTC).

    `fencing_token` is (epoch of the lease, version of the state): it only grows for an entity, so an outside
    system that remembers the greatest one can refuse a call that comes late.
    """

    request_id: int
    attempt: int = 1
    primary_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    deadline: datetime | None = None
    fencing_token: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Turn:
    """`sender` makes what is sent part of the turn."""

    context: TurnContext
    sender: Sender


current_turn: ContextVar[Turn | None] = ContextVar("entityq_current_turn", default=None)

# Set where entityq.testing runs entities: what they send outside of a turn, as in on_activate, stays there.
test_home: ContextVar[Home | None] = ContextVar("entityq_test_home", default=None)


def sender_for(home: Home) -> Sender:
    turn = current_turn.get()
    return (test_home.get() or home).sender() if turn is None else turn.sender
