"""A request whose turn is under way at a victim when the fault comes."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.probe import Probe
from benchmarks.workers import Worker
from tests.support.waiting import eventually_async

ENTITIES = 400
# Longer than any fault lasts: a turn that was not interrupted shows.
HELD_SECONDS = 30.0
PATIENCE = 60.0


@dataclass(slots=True)
class Held:
    """`reply` is the interrupted request."""

    pid: int
    epoch: int
    entity_id: str
    applied: int
    reply: asyncio.Task[tuple[int, int, int]]

    async def answered_after(self, began: float) -> float:
        pid, epoch, _ = await self.reply
        assert epoch > self.epoch, f"not interrupted: answered by {pid} under the epoch {epoch}"
        return time.monotonic() - began


async def hold_at(victim: Worker, turn: int, seconds: float = HELD_SECONDS) -> Held:
    """A request whose turn runs at the victim's runner."""
    wanted = (await asyncio.to_thread(victim.runner)).pid
    async with asyncio.timeout(PATIENCE):
        while True:
            for number in range(ENTITIES):
                entity_id = f"probe-{turn}-{number}"
                pid, epoch, applied = await Probe.at(entity_id).touch()
                if pid != wanted:
                    continue
                probe = Probe.at(entity_id)
                asked = probe.hold.options(timeout=PATIENCE)(epoch=epoch, seconds=seconds)
                reply = asyncio.ensure_future(asked)

                async def held(probe: Probe = probe, reply: asyncio.Future[Any] = reply) -> bool:
                    return reply.done() or await probe.is_held()

                await eventually_async(held, PATIENCE)
                if not reply.done():
                    return Held(pid, epoch, entity_id, applied, reply)
