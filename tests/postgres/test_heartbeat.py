"""The statements of a heart: what they see, and whom they end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from entityq.address import lock_class
from entityq.postgres.connect import connect_lease
from entityq.postgres.heartbeat import Heartbeats, Holder
from entityq.postgres.lease_session import Claim, LeaseSession
from entityq.postgres.pinned_connection import LeaseLost, PinnedConnection
from tests.support.leases import Cluster, open_cluster
from tests.support.servers import SCHEMA, Connection, connected
from tests.support.waiting import eventually

LEASE_TIME = 5.0


@dataclass(slots=True)
class Watched:
    """A cluster with a runner that watches, and a second one."""

    cluster: Cluster
    me: LeaseSession
    other: LeaseSession
    heartbeats: Heartbeats
    pinned: PinnedConnection
    sql: Connection

    async def seen(self, session: LeaseSession) -> Holder:
        holders = await self.heartbeats.beat()
        (holder,) = [holder for holder in holders if holder.is_backend(session.backend)]
        return holder

    def row(self, session: LeaseSession, change: str) -> None:
        self.sql.execute(
            f"UPDATE entityq.runner SET {change} WHERE incarnation = {session.incarnation}".encode()
        )

    def heartbeat(self, session: LeaseSession) -> int:
        query = "SELECT heartbeat FROM entityq.runner WHERE incarnation = %s"
        row = self.sql.execute(query, [session.incarnation]).fetchone()
        assert row is not None
        return int(str(row[0]))

    def shard_key(self, number: int = 0) -> tuple[int, int]:
        return lock_class(SCHEMA, self.cluster.facts.namespace, "shard", "default"), number


@asynccontextmanager
async def heartbeats_of(
    cluster: Cluster, session: LeaseSession
) -> AsyncGenerator[tuple[Heartbeats, PinnedConnection]]:
    pinned = PinnedConnection(await connect_lease(cluster.url, schema=SCHEMA), LEASE_TIME)
    try:
        heartbeats = Heartbeats(
            pinned,
            schema=SCHEMA,
            facts=cluster.facts,
            incarnation=session.incarnation,
            lease_time=LEASE_TIME,
        )
        await heartbeats.begin()
        yield heartbeats, pinned
    finally:
        pinned.end("the test is over")


@pytest.fixture
async def watched(empty_postgres_url: str, namespace: str) -> AsyncGenerator[Watched]:
    async with open_cluster(empty_postgres_url, namespace, groups=("default", "slow")) as cluster:
        me, other = await cluster.session(name="me"), await cluster.session(name="other")
        with connected(empty_postgres_url) as sql:
            async with heartbeats_of(cluster, me) as (heartbeats, pinned):
                yield Watched(cluster, me, other, heartbeats, pinned, sql)


# ----- the beat


async def test_a_beat_raises_the_own_counter_and_no_other(watched: Watched) -> None:
    for _ in range(3):
        await watched.heartbeats.beat()
    assert watched.heartbeat(watched.me) == 3
    assert watched.heartbeat(watched.other) == 0


async def test_a_beat_says_how_long_its_runner_may_be_silent(watched: Watched) -> None:
    assert (await watched.seen(watched.other)).lease_time is None
    async with heartbeats_of(watched.cluster, watched.other) as (heartbeats, _):
        await heartbeats.beat()
    assert (await watched.seen(watched.other)).lease_time == LEASE_TIME


async def test_a_beat_shows_who_holds_what(watched: Watched) -> None:
    groups = watched.cluster.facts.groups
    await watched.other.acquire([groups["default"].first_shard, groups["slow"].first_shard])
    watched.row(watched.other, "heartbeat = 41, draining = true")

    assert await watched.seen(watched.other) == Holder(
        pid=watched.other.backend.pid,
        started=watched.other.backend.started,
        application=f"entityq:{watched.other.incarnation}",
        number=watched.other.number,
        shards=2,
        row_of=watched.other.incarnation,
        name="other",
        draining=True,
        heartbeat=41,
    )
    assert (await watched.seen(watched.me)).shards == 0


async def test_another_namespace_is_not_seen(watched: Watched) -> None:
    async with open_cluster(watched.cluster.url, "another") as another:
        stranger = await another.session()
        await stranger.acquire([another.facts.groups["default"].first_shard])
        holders = await watched.heartbeats.beat()
    assert {holder.incarnation for holder in holders} == {watched.me.incarnation, watched.other.incarnation}


async def test_without_an_own_row_nothing_is_seen(watched: Watched) -> None:
    watched.sql.execute("DELETE FROM entityq.runner WHERE incarnation = %s", [watched.me.incarnation])
    assert await watched.heartbeats.beat() == []


async def test_code_without_a_heartbeat(watched: Watched) -> None:
    watched.row(watched.other, "heartbeat = NULL")
    seen = await watched.seen(watched.other)
    assert (seen.row_of, seen.heartbeat) == (watched.other.incarnation, None)


async def test_a_row_of_the_same_pid_in_an_earlier_life_is_not_this_sessions(watched: Watched) -> None:
    watched.row(watched.other, "backend_start = backend_start - interval '1 hour'")
    seen = await watched.seen(watched.other)
    assert (seen.row_of, seen.incarnation) == (None, watched.other.incarnation)


async def test_a_stranger(watched: Watched) -> None:
    watched.sql.execute("SELECT pg_advisory_lock(%s, %s)", watched.shard_key())
    (stranger,) = [holder for holder in await watched.heartbeats.beat() if holder.incarnation is None]
    assert (stranger.application, stranger.shards, stranger.number) == ("tests", 1, None)


@pytest.mark.parametrize("host", ["h" * 255, "", "höst 'with\" odd; names--"])
async def test_whatever_the_host_is_called(watched: Watched, host: str) -> None:
    claim = Claim(name="n" * 200, host=host, groups=("default",), types=("Account",))
    session = await LeaseSession.open(
        watched.cluster.url, schema=SCHEMA, facts=watched.cluster.facts, claim=claim, lease_time=LEASE_TIME
    )
    watched.cluster.stack.push_async_callback(session.close)

    seen = await watched.seen(session)

    assert (seen.host, seen.name, seen.incarnation) == (host, "n" * 200, session.incarnation)
    assert await watched.heartbeats.evict(seen) is True
    await asyncio.wait_for(session.lost.wait(), 5)


async def test_a_beat_does_not_wait_for_the_disk(watched: Watched) -> None:
    ((setting,),) = await watched.pinned.execute(b"SHOW synchronous_commit")
    assert setting == "off"


# ----- the end of a peer


async def test_the_end_of_a_peer_is_waited_for(watched: Watched) -> None:
    assert await watched.heartbeats.has_ended(watched.other.number, 0.05) is False
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(watched.heartbeats.has_ended(watched.other.number, 4.0))
        blocked = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await asyncio.to_thread(eventually, lambda: watched.sql.execute(blocked).fetchone())
        watched.other.end("killed")
    assert waiting.result() is True
    assert not watched.sql.execute(
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
    ).fetchall()


async def test_who_left_in_order_has_not_died(watched: Watched) -> None:
    third = await watched.cluster.session(name="third")
    watched.other.end("killed")
    assert await watched.heartbeats.departed(watched.other.incarnation) == ("other", "")
    await third.drain()
    third.end("killed while it drained")
    assert await watched.heartbeats.departed(third.incarnation) is None
    fourth = await watched.cluster.session(name="fourth")
    await fourth.close()
    assert await watched.heartbeats.departed(fourth.incarnation) is None


# ----- evictions


async def still_lives(session: LeaseSession) -> bool:
    return bool(await session.execute(b"SELECT 1"))


async def test_an_eviction_ends_the_session_and_frees_its_locks(watched: Watched) -> None:
    shard_id = watched.cluster.facts.groups["default"].first_shard
    await watched.other.acquire([shard_id])

    assert await watched.heartbeats.evict(await watched.seen(watched.other)) is True

    assert await watched.me.acquire([shard_id])
    with pytest.raises(LeaseLost):
        await still_lives(watched.other)


async def test_what_is_not_as_it_was_read_is_not_ended(watched: Watched) -> None:
    seen = await watched.seen(watched.other)
    for change in (replace(seen, heartbeat=1), replace(seen, row_of=10_000_000), replace(seen, pid=1)):
        assert await watched.heartbeats.evict(change) is None
    assert await still_lives(watched.other)


async def test_a_reused_pid_is_not_ended(watched: Watched) -> None:
    seen = await watched.seen(watched.other)
    assert seen.started is not None
    earlier = replace(seen, started=seen.started - timedelta(hours=1))
    assert await watched.heartbeats.evict(earlier) is None
    # Not even when the row says the same.
    watched.row(watched.other, "backend_start = backend_start - interval '1 hour'")
    assert await watched.heartbeats.evict(earlier) is None
    assert await watched.heartbeats.evict(replace(earlier, row_of=None)) is None
    assert await still_lives(watched.other)


async def test_a_counter_that_moves_at_the_same_moment_wins(watched: Watched) -> None:
    """Its update is not committed yet, so nobody could know; the eviction does not even wait for it."""
    seen = await watched.seen(watched.other)
    with watched.sql.transaction():
        watched.row(watched.other, "heartbeat = heartbeat + 1")
        assert await watched.heartbeats.evict(seen) is None
    assert await watched.heartbeats.evict(seen) is None
    assert await still_lives(watched.other)


async def test_a_runners_session_without_a_row(watched: Watched) -> None:
    watched.sql.execute("DELETE FROM entityq.runner WHERE incarnation = %s", [watched.other.incarnation])
    seen = await watched.seen(watched.other)
    assert seen.row_of is None
    assert await watched.heartbeats.evict(replace(seen, application="psql")) is None
    assert await still_lives(watched.other)
    assert await watched.heartbeats.evict(seen) is True


async def test_a_session_that_has_joined_meanwhile_is_not_ended(watched: Watched) -> None:
    seen = await watched.seen(watched.other)
    assert await watched.heartbeats.evict(replace(seen, row_of=None)) is None
    assert await still_lives(watched.other)
