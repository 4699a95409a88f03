"""The test entity of most behaviours: it does what its messages say, and tells the stage."""

from entityq import Failure, message
from tests.support.stage import Actor


class Refused(Failure):
    reason: str


class Probe(Actor):
    total: int = 0
    lines: list[str] = []

    @message
    async def note(self, text: str, gate: str = "") -> int:
        await self._stage.enter(f"note {self.id} {text}", gate)
        self.lines.append(text)
        return len(self.lines)

    @message(primary_key="key")
    async def add(self, amount: int, key: str, gate: str = "") -> int:
        await self._stage.enter(f"add {self.id} {key}", gate)
        self.total += amount
        return self.total

    @message
    async def refuse(self, reason: str) -> int:
        self.total += 1000
        self.lines.append(reason)
        raise Refused(reason=reason)

    @message
    async def explode(self) -> int:
        self._stage.tell(f"explode {self.id}")
        self.total += 1000
        self.lines.append("exploded")
        return 1 // 0

    @message(persisted=False)
    async def peek(self) -> list[str]:
        self._stage.tell(f"peek {self.id}")
        return self.lines

    @message(persisted=False)
    async def hold(self, text: str, gate: str) -> str:
        await self._stage.enter(f"hold {self.id} {text}", gate)
        return text

    @message(persisted=False, concurrent=True)
    async def look(self, gate: str = "") -> int:
        await self._stage.enter(f"look {self.id}", gate)
        return len(self.lines)
