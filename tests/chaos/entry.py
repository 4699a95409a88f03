"""A line in the journal of an entity: which turn was applied, by whom."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Entry:
    """`origin` and `n` say what was asked for: a sender and its number, a key and a variant of the payload,
    "@entity" and the number of its send in a turn, "?request" of the turn that asked. `version` and `epoch` are
    the turn's fencing token, `run` is new each time that a handler is run."""

    version: int
    epoch: int
    request: int
    origin: str
    n: int
    run: str

    def line(self) -> str:
        return f"{self.version} {self.epoch} {self.request} {self.origin} {self.n} {self.run}"

    @classmethod
    def parse(cls, line: str) -> Self:
        version, epoch, request, origin, n, run = line.split(" ")
        return cls(int(version), int(epoch), int(request), origin, int(n), run)
