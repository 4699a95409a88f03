"""Members of a cluster with a heart and nothing else: no shards are served."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.pinned_connection import LeaseLost, Parameters, Rows
from entityq.runner.heart import Heart, nothing_more, open_heart
from tests.support.leases import Cluster, open_cluster
from tests.support.servers import SCHEMA, Connection, connected
from tests.support.waiting import eventually_async

# Of hearts. A silence is seen by several reads within it, also on a busy machine.
LEASE_TIME = 1.5
# Of sessions that only lose what a test takes from them.
FOR_EVER = 60.0


@dataclass(slots=True)
class Heard:
    """Records what the heart says."""

    changes: int = 0
    ended: list[int] = field(default_factory=list[int])
    reasons: list[str] = field(default_factory=list[str])

    def membership_changed(self) -> None:
        self.changes += 1

    def runner_ended(self, incarnation: int) -> None:
        self.ended.append(incarnation)

    def not_a_member(self, reason: str) -> None:
        self.reasons.append(reason)


@dataclass(slots=True)
class Spare:
    """The lease session as the heart may use it; `silent`: as if its way to the server were cut, too."""

    session: LeaseSession
    silent: bool = False
    statements: int = 0

    async def execute(self, query: bytes, parameters: Parameters | None = None) -> Rows:
        if self.silent:
            raise LeaseLost("no answer")
        self.statements += 1
        return await self.session.execute(query, parameters)


@dataclass(slots=True)
class Beating:
    """A session and its heart."""

    session: LeaseSession
    heart: Heart
    heard: Heard
    spare: Spare
    stack: AsyncExitStack

    @property
    def incarnation(self) -> int:
        return self.session.incarnation

    async def kill(self) -> None:
        """As kill -9 does: nothing is told, and both connections end at once."""
        self.session.end("killed by the test")
        await self.heart.stop()

    async def heard_of(self, other: "Beating") -> None:
        await until(lambda: other.incarnation in self.heard.ended, "the death notice")

    @property
    def alive(self) -> bool:
        return not self.session.lost.is_set()


@dataclass(slots=True)
class Hearts:
    """Those of one test; stopped with the cluster."""

    cluster: Cluster
    sql: Connection
    lease_time: float = LEASE_TIME

    async def start(
        self,
        name: str = "runner",
        *,
        url: str = "",
        each_cycle: Callable[[], Awaitable[None]] = nothing_more,
        lease_time: float | None = None,
    ) -> Beating:
        """`url`: another way to the same server, for the heart alone. `lease_time`: another than the others'."""
        stack = await self.cluster.stack.enter_async_context(AsyncExitStack())
        heart = await stack.enter_async_context(
            open_heart(
                url or self.cluster.url,
                schema=SCHEMA,
                facts=self.cluster.facts,
                lease_time=lease_time or self.lease_time,
            )
        )
        session = await self.cluster.session(name=name, lease_time=FOR_EVER)
        await heart.begin(session.incarnation, session.backend)
        heard, spare = Heard(), Spare(session)
        heart.listen(heard, spare, each_cycle)
        return Beating(session, heart, heard, spare, stack)

    def heartbeat(self, session: LeaseSession) -> int:
        query = "SELECT heartbeat FROM runner WHERE incarnation = %s"
        row = self.sql.execute(query, [session.incarnation]).fetchone()
        assert row is not None
        return int(str(row[0]))

    async def beats(self, session: LeaseSession, count: int = 1) -> None:
        """Waits for so many more."""
        before = self.heartbeat(session)
        await until(lambda: self.heartbeat(session) >= before + count, f"{count} beats")

    async def acquainted(self, *members: Beating) -> None:
        """Waits until each has read all others, and waits for its peer."""
        for member in members:
            await self.beats(member.session, 2)

    async def silent(self, name: str = "silent") -> LeaseSession:
        """A member whose counter nobody raises."""
        return await self.cluster.session(name=name, lease_time=FOR_EVER)


@asynccontextmanager
async def open_hearts(url: str, namespace: str, *, lease_time: float = LEASE_TIME) -> AsyncGenerator[Hearts]:
    with connected(url) as sql:
        sql.execute(f"SET search_path TO {SCHEMA}".encode())
        async with open_cluster(url, namespace) as cluster:
            yield Hearts(cluster, sql, lease_time)


async def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    async def holds() -> bool:
        return bool(condition())

    await eventually_async(holds, seconds, what)


async def ended(session: LeaseSession, seconds: float = 20.0) -> float:
    """Waits for the end of a session; returns how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        await session.lost.wait()
    return time.monotonic() - began
