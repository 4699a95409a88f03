"""A request that was given up, as the operator sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from entityq.address import Address


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`attempts`: with those that were lost with their processes. `error` is one line.

    `cause` has type, message, traceback and the chain of causes, as JSON; only what asks for one request reads it.
    `requeued_at` (UTC): it is history, the request was given another chance.
    """

    request_id: int
    died_at: datetime
    address: Address
    message: str
    attempts: int
    error_type: str
    error: str
    requeued_at: datetime | None = None
    requeued_by: str | None = None
    cause: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """All that is given must fit. `error` is a part of the error's type or text, in any case."""

    type: str | None = None
    since: datetime | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.since is not None and self.since.tzinfo is None:
            raise ValueError(f"since needs a time zone, as datetime.now(UTC) has one: {self.since}")


@dataclass(frozen=True, slots=True)
class Handled:
    """Request ids that were requeued or discarded, and why others were not, by id."""

    done: tuple[int, ...]
    refused: Mapping[int, str]
