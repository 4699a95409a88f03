"""A proxy that knows which Redis command passes, from RESP2. Each command of a pipeline is a step."""

import asyncio
import re
from collections import deque

from tests.crash_points import resp
from tests.crash_points.gate import Gate
from tests.crash_points.point import Phase
from tests.crash_points.proxy import Link

_KEY = re.compile(rb"eq:\{[^}]*\}:(\w+)")
# Connection set-up that no caller waits for on its own.
_QUIET = frozenset({"CLIENT", "HELLO", "SELECT", "AUTH"})


def step_of(command: list[bytes]) -> str:
    """`XADD stream`: the command and the kind of its key."""
    name = command[0].decode().upper()
    if name in {"XGROUP", "XINFO"}:
        name += f" {command[1].decode().upper()}"
    kinds = [match[1].decode() for match in map(_KEY.match, command) if match]
    if name == "XREADGROUP" and command[-1] != b">":
        name += " own pending"
    kind = "stream" if "stream" in kinds else next(iter(kinds), "")
    return f"{name} {kind}".strip()


class RedisLink(Link):
    """One connection."""

    def __init__(self, gate: Gate, server: str) -> None:
        super().__init__(gate, server)
        self._sent = bytearray()
        self._said = bytearray()
        self._under_way: deque[str] = deque()

    async def requests(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        self._sent += data
        while (parsed := resp.parse(self._sent)) is not None:
            value, end = parsed
            assert isinstance(value, list), "a process sends commands as arrays"
            step = step_of([argument for argument in value if isinstance(argument, bytes)])
            raw = bytes(self._sent[:end])
            del self._sent[:end]
            await self._reach(step, "before")
            self._under_way.append(step)
            writer.write(raw)

    async def answers(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        self._said += data
        while (parsed := resp.parse(self._said)) is not None:
            value, end = parsed
            raw = bytes(self._said[:end])
            del self._said[:end]
            await self._reach(self._answered(value), "after")
            writer.write(raw)

    def _answered(self, value: resp.Value) -> str:
        match value:
            case [b"message", bytes(channel), _]:
                return step_of([b"message", channel])
            case None if self._under_way[0].startswith("XREADGROUP"):
                return f"{self._under_way.popleft()}, nothing"
            case _:
                return self._under_way.popleft()

    async def _reach(self, step: str, phase: Phase) -> None:
        if step.split(maxsplit=1)[0] not in _QUIET:
            await self.reach(step, phase)
