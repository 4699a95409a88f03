"""The scenarios: what happens, and whose points are visited meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tests.crash_points.point import Phase, Point

TriggerAction = Literal["kill", "drop", "pause", "drain"]


@dataclass(frozen=True, slots=True)
class Trigger:
    """The first fault of a scenario, at a point of its own: the points that are visited come after it."""

    point: Point
    action: TriggerAction


@dataclass(frozen=True, slots=True)
class Scenario:
    """`roles`: whose points are visited. Without a trigger they begin with the script. `fresh`: producer and
    runner have done nothing yet."""

    name: str
    runners: int
    roles: Sequence[str]
    trigger: Trigger | None = None
    fresh: bool = False


def _commit(phase: Phase) -> Point:
    return Point("runner", "lease", "turns.commit_turns", phase)


SCENARIOS = (
    Scenario("send", 1, ("producer", "runner")),
    Scenario("first send", 1, ("producer", "runner"), fresh=True),
    Scenario("rejoin", 1, ("runner",), Trigger(_commit("before"), "drop")),
    Scenario("takeover", 2, ("next runner",), Trigger(_commit("before"), "kill")),
    Scenario("eviction", 2, ("next runner",), Trigger(_commit("before"), "pause")),
    Scenario("hand-over", 2, ("runner", "next runner"), Trigger(_commit("after"), "drain")),
)
