"""The entity that the benchmarks send to."""

from entityq import Entity, EntityQ, message

app = EntityQ("benchmark")


@app.entity(mailbox_capacity=1_000)
class Counter(Entity):
    """Counts what it applied, so that a benchmark can tell twice from once."""

    applied: int = 0

    @message(primary_key="reference")
    async def add(self, amount: int, reference: str) -> int:
        self.applied += amount
        return self.applied

    @message(persisted=False)
    async def read(self) -> int:
        return self.applied
