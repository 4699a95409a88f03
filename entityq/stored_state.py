"""The state of an entity as it was committed last."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredState:
    """`version` counts the entity's committed turns; 0 and None when it has no state.

    `state_version`: that of the class which wrote the state.
    """

    version: int
    state: bytes | None
    state_version: int = 1
