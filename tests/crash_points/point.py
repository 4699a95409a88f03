"""A crash point: a moment between two steps of a process, as the outside sees it."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["before", "after"]


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """`before`: the process has sent `step`, and the server has not got it. `after`: the server has done it,
    and the process has not got the answer. `server` is "postgres", "lease" or "redis"."""

    role: str
    server: str
    step: str
    phase: Phase

    def __str__(self) -> str:
        return f"{self.role}: {self.phase} {self.step} ({self.server})"
