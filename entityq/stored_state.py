"""The state of an entity as it was committed last."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredState:
    """`version` counts the entity's committed turns; 0 and None when it has no state."""

    version: int
    state: bytes | None
