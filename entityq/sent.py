"""What became of one request of a batch."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from entityq.errors import EntityQError, PrimaryKeyConflict
from entityq.receipt import Receipt

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Sent(Generic[R]):
    """`outcome` is the receipt, or the error of a request whose primary key was known."""

    outcome: Receipt[R] | EntityQError

    @property
    def status(self) -> Literal["accepted", "duplicate", "conflict"]:
        """'duplicate': its primary key was known with the same payload, 'conflict': with another one."""
        if isinstance(self.outcome, PrimaryKeyConflict):
            return "conflict"
        return "accepted" if isinstance(self.outcome, Receipt) and not self.outcome.duplicate else "duplicate"

    @property
    def error(self) -> EntityQError | None:
        """A PrimaryKeyConflict, or the ReplyExpired of a duplicate."""
        return self.outcome if isinstance(self.outcome, EntityQError) else None

    @property
    def receipt(self) -> Receipt[R]:
        """Of a duplicate, the first request's. Raises `error` where there is one."""
        if isinstance(self.outcome, EntityQError):
            raise self.outcome
        return self.outcome
