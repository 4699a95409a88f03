"""A long answer, value by value: when the worker dies, the next one goes on behind the last page."""

import asyncio
from collections.abc import AsyncIterator

from entityq import Entity, EntityQ, message

app = EntityQ("reports")


@app.entity
class Report(Entity):
    finished: int = 0

    @message(primary_key="name")
    async def pages(self, name: str, count: int) -> AsyncIterator[str]:
        last: str | None = self.context.last_chunk
        first = 1 if last is None else int(last.split()[-1]) + 1
        for number in range(first, count + 1):
            await asyncio.sleep(0.01)  # the work
            yield f"{name}, page {number}"
        self.finished += 1

    @message
    async def how_many(self) -> int:
        return self.finished
