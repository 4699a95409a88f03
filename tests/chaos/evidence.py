"""All that is known at the end of a run, and what a check says about it."""

from collections import defaultdict
from dataclasses import dataclass, field

from tests.chaos.history import Attempt, History
from tests.chaos.stored import Stored


@dataclass(slots=True)
class Evidence:
    """`ends`: processes that ended without having been killed, or did not end, or never came back."""

    history: History
    stored: Stored
    ends: list[str] = field(default_factory=list[str])

    @property
    def persisted(self) -> list[Attempt]:
        return [each for each in self.history.attempts.values() if each.invocation.persisted]

    def by_key(self) -> dict[str, list[Attempt]]:
        """The attempts of each key, in the order in which they were made."""
        found: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in sorted(self.persisted, key=lambda each: each.invoked):
            if attempt.invocation.key is not None:
                found[attempt.invocation.key].append(attempt)
        return found


@dataclass(slots=True)
class Finding:
    """`examined`: how many things the invariant was checked on."""

    invariant: str
    examined: int = 0
    violations: list[str] = field(default_factory=list[str])

    def check(self, holds: bool, violation: str) -> None:
        self.examined += 1
        if not holds:
            self.violations.append(violation)
