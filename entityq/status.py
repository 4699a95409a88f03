"""What a caller can know about an entity without sending it a message."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

State = Literal["idle", "processing", "suspended", "complete", "failed"]


@dataclass(frozen=True, slots=True)
class PendingSignal:
    """What a suspended request waits for, and the token that it can be sent with."""

    name: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EntityStatus:
    """`updated_at` (UTC) is None when nothing was committed; `pending_signal` is what it is suspended on."""

    state: State
    updated_at: datetime | None = None
    pending_signal: PendingSignal | None = None
