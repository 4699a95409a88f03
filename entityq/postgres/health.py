"""The health of runners as their peers found it: one truth, from which everybody computes the assignment."""

from entityq.postgres.connect import Pool, pooled
from entityq.postgres.queries import load

_RECORD = load("health.sql")["record_health"]


class RunnerHealth:
    """Where a runner records what it found out about its peers. Read by `membership.live_runners`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def record(self, incarnation: int, *, healthy: bool) -> bool:
        """Whether that changed anything. Raises psycopg.Error where the connection fails."""
        async with pooled(self._pool) as connection:
            cursor = await connection.execute(_RECORD, {"incarnation": incarnation, "healthy": healthy})
            return await cursor.fetchone() is not None
