"""Clusters and lease sessions of single tests."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from entityq.postgres.connect import connect
from entityq.postgres.facts import Facts, register_types
from entityq.postgres.lease_session import Backend, Claim, LeaseSession
from entityq.postgres.migrate import migrate
from tests.support.servers import SCHEMA, SHARDS

LEASE_TIME = 5.0


@dataclass(slots=True)
class Cluster:
    """A migrated database with one namespace, and the sessions that a test opened in it."""

    url: str
    facts: Facts
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def session(
        self,
        *,
        name: str = "runner",
        groups: Sequence[str] = ("default",),
        types: Sequence[str] = ("Account",),
        weight: float = 1.0,
        lease_time: float = LEASE_TIME,
        ghost: Backend | None = None,
    ) -> LeaseSession:
        session = await LeaseSession.open(
            self.url,
            schema=SCHEMA,
            facts=self.facts,
            claim=Claim(name=name, groups=groups, types=types, weight=weight),
            lease_time=lease_time,
            ghost=ghost,
        )
        self.stack.push_async_callback(session.close)
        return session


@asynccontextmanager
async def open_cluster(
    url: str, namespace: str, *, shards: int = SHARDS, groups: Sequence[str] = ("default",)
) -> AsyncGenerator[Cluster]:
    """Each group has one type: `default` has `Account`, any other one the group's name."""
    connection = await connect(url, schema=SCHEMA)
    try:
        await migrate(connection, schema=SCHEMA, namespace=namespace, shards=shards)
        types = {"Account" if group == "default" else group: group for group in groups}
        facts = await register_types(connection, namespace, types)
    finally:
        await connection.close()
    cluster = Cluster(url, facts)
    async with cluster.stack:
        yield cluster
