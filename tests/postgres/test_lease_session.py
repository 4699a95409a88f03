"""The session that holds the locks, on a real server: exclusion, epochs, and every way to lose it."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import psycopg
import pytest

from entityq.errors import PersistenceError, UnsafeConfiguration
from entityq.postgres.connect import connect
from entityq.postgres.lease_session import RUNNER_NUMBERS, Claim, LeaseSession
from entityq.postgres.membership import runner_class, unsigned
from entityq.postgres.pinned_connection import LeaseLost
from entityq.postgres.queries import load
from tests.support.fault_proxy import Faults, fault_proxy
from tests.support.leases import Cluster, open_cluster
from tests.support.servers import SCHEMA, Connection
from tests.support.waiting import eventually_async

SLEEP = b"SELECT pg_sleep(30)"


@pytest.fixture
async def cluster(postgres_url: str, namespace: str) -> AsyncIterator[Cluster]:
    async with open_cluster(postgres_url, namespace) as opened:
        yield opened


def backend_is_gone(server: Connection, session: LeaseSession) -> bool:
    found = server.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [session.backend.pid])
    return found.fetchone() is None


async def lost_within(session: LeaseSession, seconds: float) -> str:
    async with asyncio.timeout(seconds):
        await session.lost.wait()
    return session.reason


async def test_a_shard_has_one_holder(cluster: Cluster) -> None:
    """STO-19: another session gets nothing, the same one its set again, and a release frees it."""
    a, b = await cluster.session(), await cluster.session()

    assert await a.acquire(iter([1, 2, 3])) == {1: 1, 2: 1, 3: 1}
    assert await b.acquire([1, 2, 3]) == {}
    assert await a.acquire([3, 2, 1, 3]) == {1: 1, 2: 1, 3: 1}
    assert await a.held() == {1, 2, 3}

    await a.release([1, 2])
    assert await a.held() == {3}
    assert await b.acquire([1, 2, 3]) == {1: 2, 2: 2}
    assert await b.held() == {1, 2}


async def test_locks_do_not_stack(cluster: Cluster) -> None:
    a, b = await cluster.session(), await cluster.session()
    for _ in range(3):
        await a.acquire([1])
    await asyncio.gather(*[a.acquire([1, 2]) for _ in range(5)])
    await a.release([1, 2])
    assert await b.acquire([1, 2]) == {1: 2, 2: 2}


async def test_every_acquisition_has_its_own_higher_epoch(cluster: Cluster) -> None:
    """Also where the taker's snapshot is older than the last owner's increment."""
    sessions = [await cluster.session() for _ in range(4)]
    epochs: list[int] = []

    async def compete(session: LeaseSession) -> None:
        while len(epochs) < 100:
            for epoch in (await session.acquire([1])).values():
                epochs.append(epoch)
                await session.release([1])

    async with asyncio.TaskGroup() as tasks:
        for session in sessions:
            tasks.create_task(compete(session))
    assert epochs == list(range(1, len(epochs) + 1))


async def test_namespaces_in_one_database_do_not_exclude_each_other(cluster: Cluster, namespace: str) -> None:
    """STO-20: the same group and number, but other facts and another lock class."""
    async with open_cluster(cluster.url, f"{namespace}-other") as other:
        a, b = await cluster.session(), await other.session()
        first_a = cluster.facts.groups["default"].first_shard
        first_b = other.facts.groups["default"].first_shard
        assert await a.acquire([first_a]) and await b.acquire([first_b])
        assert [member.incarnation for member in await a.members()] == [a.incarnation]
        assert [member.incarnation for member in await b.members()] == [b.incarnation]


async def test_groups_have_locks_of_their_own(postgres_url: str, namespace: str) -> None:
    async with open_cluster(postgres_url, namespace, groups=("default", "mail")) as cluster:
        a, b = await cluster.session(), await cluster.session()
        default, mail = (cluster.facts.groups[name].first_shard for name in ("default", "mail"))
        assert await a.acquire([default])
        assert await b.acquire([default, mail]) == {mail: 1}


async def test_a_killed_backend_is_noticed_while_idle(cluster: Cluster, server: Connection) -> None:
    a, b = await cluster.session(), await cluster.session()
    await a.acquire([1, 2])
    started = time.monotonic()
    server.execute("SELECT pg_terminate_backend(%s, 2000)", [a.backend.pid])
    reason = await lost_within(a, 1)
    assert time.monotonic() - started < 1
    assert "administrator command" in reason
    assert await b.acquire([1, 2]) == {1: 2, 2: 2}
    with pytest.raises(LeaseLost, match="administrator command"):
        await a.execute(b"SELECT 1")


async def test_a_statement_beyond_its_deadline_ends_the_session(cluster: Cluster, server: Connection) -> None:
    """STO-21, STO-22: nothing waits for the server, and the next session needs nothing of the old one."""
    session = await cluster.session(lease_time=0.3)
    await session.acquire([1])
    started = time.monotonic()
    with pytest.raises(LeaseLost, match=r"within 0\.3 s"):
        await session.execute(SLEEP)
    assert 0.3 <= time.monotonic() - started < 0.8
    with pytest.raises(LeaseLost):
        await session.held()

    following = await cluster.session(ghost=session.backend)
    assert await following.acquire([1]) == {1: 2}
    assert backend_is_gone(server, session)


async def test_locks_that_were_taken_after_the_client_gave_up_are_not_left(
    cluster: Cluster, server: Connection
) -> None:
    """L4: the server took them and said so, and nobody heard it."""
    async with fault_proxy(cluster.url) as proxy:
        behind = replace(cluster, url=proxy.url)
        session = await behind.session(lease_time=2.0)
        await session.acquire([3])  # the first time, there are two round trips
        proxy.black_hole(to_server=False)
        acquiring = asyncio.create_task(session.acquire([1, 2]))
        locks = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"

        async def taken() -> bool:
            return len(server.execute(locks, [session.backend.pid]).fetchall()) == 4  # its number's, too

        await eventually_async(taken)
        proxy.black_hole()  # the end of the connection must not come through, either
        proxy.apply(Faults(), existing=False)
        with pytest.raises(LeaseLost, match="did not answer"):
            await acquiring
        assert await taken()
        following = await behind.session(ghost=session.backend)
        assert await following.acquire([1, 2, 3]) == {1: 2, 2: 2, 3: 2}
        await following.close()


async def test_a_cancelled_statement_ends_the_session_at_once(cluster: Cluster, server: Connection) -> None:
    session = await cluster.session()
    await session.acquire([1])
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await session.execute(SLEEP)
    assert time.monotonic() - started < 0.5
    assert session.reason == "a statement was cancelled"
    # client_connection_check_interval would end it, too, after 2 s.
    following = await cluster.session(ghost=session.backend)
    assert backend_is_gone(server, session)
    assert await following.acquire([1]) == {1: 2}


async def test_data_errors_pass_and_leave_the_session(cluster: Cluster) -> None:
    session = await cluster.session()
    await session.acquire([1])
    with pytest.raises(psycopg.errors.DivisionByZero):
        await session.execute(b"SELECT 1 / 0")
    assert await session.held() == {1}


async def test_an_epoch_that_cannot_be_incremented_leaves_no_lock(cluster: Cluster) -> None:
    a, b = await cluster.session(), await cluster.session()
    async with await connect(cluster.url, schema=SCHEMA) as other, other.transaction():
        await other.execute("SELECT 1 FROM shard WHERE shard_id = 1 FOR SHARE")
        assert await a.acquire([1, 2]) == {2: 1}
        assert await a.held() == {2}
    assert await b.acquire([1]) == {1: 1}


async def test_an_acquisition_that_fails_leaves_no_lock(cluster: Cluster) -> None:
    a, b = await cluster.session(), await cluster.session()
    async with await connect(cluster.url, schema=SCHEMA) as owner:
        await owner.execute("ALTER TABLE shard ADD CONSTRAINT broken CHECK (epoch < 1)")
        with pytest.raises(psycopg.errors.CheckViolation):
            await a.acquire([1, 2])
        await owner.execute("ALTER TABLE shard DROP CONSTRAINT broken")
    assert await a.held() == set()
    assert await b.acquire([1, 2]) == {1: 1, 2: 1}


async def test_a_lock_that_is_gone_ends_the_session(cluster: Cluster) -> None:
    session = await cluster.session()
    await session.acquire([1, 2])
    await session.execute(b"SELECT pg_advisory_unlock_all()")
    with pytest.raises(LeaseLost, match="number is gone"):
        await session.held()
    assert session.lost.is_set()


async def test_a_shard_lock_that_is_gone_ends_the_session(cluster: Cluster, namespace: str) -> None:
    session = await cluster.session()
    await session.acquire([1, 2])
    await session.execute(b"SELECT pg_advisory_unlock_all()")
    await session.execute(
        b"SELECT pg_advisory_lock(%(class)b::integer, %(number)b::integer)",
        {"class": runner_class(SCHEMA, namespace), "number": session.number},
    )
    with pytest.raises(LeaseLost, match="shard 1 is gone"):
        await session.held()


async def test_a_release_of_a_lock_that_is_gone_ends_the_session(cluster: Cluster) -> None:
    session = await cluster.session()
    await session.acquire([1])
    await session.execute(b"SELECT pg_advisory_unlock_all()")
    with pytest.raises(LeaseLost, match="before its release"):
        await session.release([1])


async def test_each_session_is_one_runner_with_its_own_incarnation_and_number(cluster: Cluster) -> None:
    """STO-18, for a row that says who holds the lock instead of a heartbeat."""
    a = await cluster.session(name="first", weight=2.0)
    b = await cluster.session(name="second")
    assert a.incarnation < b.incarnation
    assert a.number != b.number
    assert {a.number, b.number} <= set(range(RUNNER_NUMBERS))
    members = await b.members()
    assert [(m.incarnation, m.number, m.name, m.weight) for m in members] == [
        (a.incarnation, a.number, "first", 2.0),
        (b.incarnation, b.number, "second", 1.0),
    ]
    ((name,),) = await a.execute(b"SELECT current_setting('application_name')")
    assert name == f"entityq:{a.incarnation}"
    await a.close()
    assert [member.incarnation for member in await b.members()] == [b.incarnation]
    assert len(await b.execute(b"SELECT 1 FROM runner")) == 1


async def test_rows_of_dead_runners_are_removed_by_the_next_one(cluster: Cluster, server: Connection) -> None:
    dead, alive = await cluster.session(), await cluster.session()
    server.execute("SELECT pg_terminate_backend(%s, 2000)", [dead.backend.pid])
    assert [member.incarnation for member in await alive.members()] == [alive.incarnation]
    following = await cluster.session()
    rows = await following.execute(b"SELECT incarnation FROM runner ORDER BY incarnation")
    assert rows == [(alive.incarnation,), (following.incarnation,)]


async def test_a_row_with_our_own_number_is_a_dead_ones(cluster: Cluster, namespace: str) -> None:
    """Even with our pid: pids are used again."""
    session = await cluster.session()
    following = session.incarnation + 1
    await session.execute(
        load("leases.sql")["join_cluster"],
        {
            "unsigned_class": unsigned(runner_class(SCHEMA, namespace)),
            "incarnation": following,
            "namespace": namespace,
            "number": session.number,
            "name": "the next life",
            "place": "",
            "host": "",
            "pid": session.backend.pid,
            "backend_start": session.backend.started,
            "groups": [],
            "types": [],
            "weight": 1.0,
        },
    )
    assert await session.execute(b"SELECT incarnation FROM runner") == [(following,)]


async def test_without_a_free_number_the_start_is_refused(cluster: Cluster, namespace: str) -> None:
    async with await connect(cluster.url, schema=SCHEMA) as other:
        await other.execute(
            "SELECT pg_advisory_lock(%s, n) FROM generate_series(0, %s) n",
            [runner_class(SCHEMA, namespace), RUNNER_NUMBERS - 1],
        )
        with pytest.raises(UnsafeConfiguration, match="runner numbers"):
            await cluster.session()
        await other.execute("SELECT pg_advisory_unlock(%s, 7)", [runner_class(SCHEMA, namespace)])
        session = await cluster.session()
        assert session.number == 7
        ((locks,),) = await session.execute(
            b"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        )
        assert locks == 1


async def test_a_ghost_is_ended_only_when_pid_and_start_are_its_own(cluster: Cluster) -> None:
    a = await cluster.session()
    b = await cluster.session()
    of_another_life = type(a.backend)(a.backend.pid, b.backend.started)
    await cluster.session(ghost=of_another_life)
    assert await a.execute(b"SELECT 1") == [(1,)]
    await cluster.session(ghost=a.backend)
    await lost_within(a, 1)


async def test_draining_keeps_the_locks_and_the_row(cluster: Cluster) -> None:
    a, b = await cluster.session(), await cluster.session()
    await a.acquire([1])
    await a.drain()
    assert [member.draining for member in await b.members()] == [True, False]
    assert await b.acquire([1]) == {}
    await a.close()
    # The server ends the session, and frees its locks, a moment later.
    assert await eventually_async(lambda: b.acquire([1]), what="the lock's release") == {1: 2}
    assert await b.held() == {1}


async def test_an_unreachable_server_is_one_clear_error(cluster: Cluster) -> None:
    with pytest.raises(PersistenceError, match="Cannot connect"):
        await LeaseSession.open(
            "postgresql://nobody@127.0.0.1:1/none",
            schema=SCHEMA,
            facts=cluster.facts,
            claim=Claim(name="x", groups=[], types=[]),
            lease_time=1,
        )
