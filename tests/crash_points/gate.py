"""Where the proxies of one process ask whether a step may pass: points are recorded, and faults happen."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.crash_points.point import Phase, Point

# Returns whether the step may pass; False cuts its connection.
Action = Callable[[], Awaitable[bool]]


@dataclass(slots=True, eq=False)
class Armed:
    """`action` happens when `point` is reached for the nth time, once."""

    point: Point
    occurrence: int
    action: Action
    reached: bool = False


class Gate:
    """Of one process; `role` is what it is called in the points, and may change with the scenario."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._trace: list[Point] | None = None
        self._seen: Counter[Point] = Counter()
        self._armed: list[Armed] = []
        self._acting: set[asyncio.Task[bool]] = set()

    def watch(self) -> None:
        """From now on points are recorded and counted, from the first one."""
        self._trace = []
        self._seen.clear()

    def unwatch(self) -> list[Point]:
        """The points since `watch`; nothing stays armed."""
        trace, self._trace = self._trace or [], None
        self._armed.clear()
        return trace

    def arm(self, armed: Armed) -> None:
        self._armed.append(armed)

    async def reach(self, server: str, step: str, phase: Phase) -> bool:
        """Called by the proxies; whether the step may pass."""
        if self._trace is None:
            return True
        point = Point(self.role, server, step, phase)
        self._trace.append(point)
        self._seen[point] += 1
        for armed in self._armed:
            if not armed.reached and armed.point == point and armed.occurrence == self._seen[point]:
                armed.reached = True
                # To its end, also when its connection ends in the middle, as it does by a kill.
                acting = asyncio.create_task(_result(armed.action), name=f"fault at {point}")
                self._acting.add(acting)
                acting.add_done_callback(self._acting.discard)
                return await asyncio.shield(acting)
        return True


async def _result(action: Action) -> bool:
    return await action()
