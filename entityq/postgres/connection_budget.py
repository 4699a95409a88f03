"""How many sessions of Postgres a runner takes, and whether nearly all are in use."""

import logging

from entityq.postgres.connect import Connection
from entityq.postgres.queries import load

_log = logging.getLogger(__name__)

_COUNT_SESSIONS = load("connection_budget.sql")["count_sessions"]

# The lease session and the heartbeat's.
_DIRECT = 2
# Of the runner's own client: inserts and reads.
_CLIENT = 2

_NEARLY_ALL = 0.8


def of_runner(pool_size: int) -> int:
    """Sessions that a runner has open at most, but for the rare ones of its client."""
    return _DIRECT + pool_size + _CLIENT


def warning(*, in_use: int, allowed: int, pool_size: int) -> str:
    """What to tell before a runner starts; empty while there is room. `allowed`: without the reserved ones."""
    mine = of_runner(pool_size)
    if in_use + mine < _NEARLY_ALL * allowed:
        return ""
    return (
        f"Postgres is nearly full: {in_use} of {allowed} sessions are in use (max_connections without the "
        f"reserved ones), and this runner opens up to {mine}. At the limit runners and clients are refused. "
        f"Raise max_connections, run fewer runners, or lower ENTITYQ_POOL_SIZE ({pool_size})."
    )


async def warn_when_short(connection: Connection, pool_size: int) -> None:
    """Logs the warning. Raises psycopg.Error where the connection fails."""
    cursor = await connection.execute(_COUNT_SESSIONS, prepare=False)
    for in_use, allowed in await cursor.fetchall():
        text = warning(in_use=in_use, allowed=allowed, pool_size=pool_size)
        if text:
            _log.warning("runner.few_sessions: %s", text)
