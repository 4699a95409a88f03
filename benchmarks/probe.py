"""The entity that the fault benchmarks watch: it says under which lease a turn ran, and can be held."""

import asyncio
import os

from entityq import Entity, EntityQ, message

app = EntityQ("faults")


@app.entity(mailbox_capacity=1_000, concurrency=2)
class Probe(Entity):
    """Replies are (process id, epoch of the lease under which the turn ran, turns applied)."""

    applied: int = 0
    _held: bool = False

    @message
    async def touch(self) -> tuple[int, int, int]:
        self.applied += 1
        return self._answer()

    @message
    async def hold(self, epoch: int, seconds: float) -> tuple[int, int, int]:
        """Lasts that long under that epoch, and no time under any other one."""
        if self.context.fencing_token[0] == epoch:
            self._held = True
            await asyncio.sleep(seconds)
        self.applied += 1
        return self._answer()

    @message(persisted=False, concurrent=True)
    async def is_held(self) -> bool:
        return self._held

    def _answer(self) -> tuple[int, int, int]:
        return os.getpid(), self.context.fencing_token[0], self.applied
