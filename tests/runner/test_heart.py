"""Hearts of several members on a real Postgres: who is told of whose end, who is evicted, and who is not."""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from entityq.address import lock_class
from entityq.errors import PersistenceError
from entityq.postgres.lease_session import LeaseSession
from tests.support.fault_proxy import fault_proxy
from tests.support.hearts import LEASE_TIME, Beating, Hearts, ended, open_hearts, until
from tests.support.pgbouncer import listen_on_tcp
from tests.support.servers import SCHEMA, Connection, PrivateServers, connected

# How long a member is watched that must not be evicted: several lease times.
LONG = 3 * LEASE_TIME


@pytest.fixture
async def hearts(empty_postgres_url: str, namespace: str) -> AsyncGenerator[Hearts]:
    async with open_hearts(empty_postgres_url, namespace) as opened:
        yield opened


@contextmanager
def no_more_connections(url: str) -> Generator[None]:
    """The database takes none, a superuser's neither."""
    name = conninfo_to_dict(url)["dbname"]
    with connected(make_conninfo(url, dbname="postgres")) as sql:
        sql.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        try:
            yield
        finally:
            sql.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())


def runner_row(sql: Connection, session: LeaseSession, change: str) -> None:
    sql.execute(f"UPDATE runner SET {change} WHERE incarnation = {session.incarnation}".encode())


# ----- death notices


async def test_the_end_of_the_peer_is_told(hearts: Hearts, caplog: pytest.LogCaptureFixture) -> None:
    a, b = await hearts.start("a"), await hearts.start("b")
    await hearts.acquainted(a, b)
    await b.kill()
    await until(lambda: a.heard.ended, "the death notice")
    assert a.heard.ended == [b.incarnation]
    assert f"runner.died incarnation={b.incarnation} name=b" in caplog.text


async def test_it_is_told_by_the_wait_and_not_by_the_next_beat(
    empty_postgres_url: str, namespace: str
) -> None:
    async with open_hearts(empty_postgres_url, namespace, lease_time=600.0) as hearts:
        a, b = await hearts.start(), await hearts.start()
        await hearts.acquainted(a, b)
        await hearts.beats(a.session)
        blocked = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await until(lambda: len(hearts.sql.execute(blocked).fetchall()) == 2, "both wait for each other")
        with hearts.sql.transaction():
            # No beat can be written any more.
            runner_row(hearts.sql, a.session, "draining = false")
            await b.kill()
            await until(lambda: a.heard.ended == [b.incarnation], "the death notice")


async def test_two_neighbours_end_at_once(hearts: Hearts) -> None:
    a, b, c, d = [await hearts.start(name) for name in "abcd"]
    await hearts.acquainted(a, b, c, d)
    before = d.heard.changes
    await asyncio.gather(b.kill(), c.kill())
    await until(lambda: len(a.heard.ended) == 2, "both death notices")
    # Who does not hear what a tells looks, too.
    await until(lambda: d.heard.changes > before, "the change of the membership")
    assert set(a.heard.ended) == {b.incarnation, c.incarnation}
    assert d.heard.ended == []


async def test_a_watcher_ends_with_its_peer(hearts: Hearts) -> None:
    a, b, c, d = [await hearts.start(name) for name in "abcd"]
    await hearts.acquainted(a, b, c, d)
    # The heart of b is gone first: nobody but a is left who could tell of c.
    await b.heart.stop()
    await hearts.beats(a.session)
    c.session.end("killed")
    b.session.end("killed")
    await until(lambda: len(a.heard.ended) == 2, "both death notices")
    assert a.heard.ended == [b.incarnation, c.incarnation]
    assert d.heard.ended == []


async def test_a_chain_of_ends(hearts: Hearts) -> None:
    a, *others = [await hearts.start(str(n)) for n in range(5)]
    await hearts.acquainted(a, *others)
    for other in others:
        await other.kill()
        await a.heard_of(other)
    assert a.heard.ended == [other.incarnation for other in others]
    assert a.alive


async def test_who_leaves_in_order_has_not_died(hearts: Hearts, caplog: pytest.LogCaptureFixture) -> None:
    a, b = await hearts.start("a"), await hearts.start("b")
    await hearts.acquainted(a, b)
    await b.session.drain()
    await b.session.close()
    await b.heart.stop()
    await until(lambda: a.heard.ended == [b.incarnation], "the notice that wakes the others")
    assert "runner.died" not in caplog.text


async def test_who_joined_and_ended_before_it_was_read_is_told_of(hearts: Hearts) -> None:
    gate = threading.Event()

    async def wait() -> None:
        await asyncio.to_thread(gate.wait)

    a = await hearts.start("a", each_cycle=wait)
    b = await hearts.silent("b")
    a.heart.joined(b.incarnation)
    b.end("killed")
    gate.set()
    await until(lambda: a.heard.ended == [b.incarnation], "the death notice")


async def test_who_joins_is_noticed(hearts: Hearts) -> None:
    a = await hearts.start("a")
    await hearts.beats(a.session)
    before = a.heard.changes
    await hearts.start("b")
    await until(lambda: a.heard.changes > before, "the change of the membership")


# ----- evictions


async def test_who_is_silent_is_evicted(hearts: Hearts, caplog: pytest.LogCaptureFixture) -> None:
    a = await hearts.start("a")
    silent = await hearts.silent("s" * 100)
    await silent.acquire([hearts.cluster.facts.groups["default"].first_shard])

    assert await ended(silent) >= LEASE_TIME * 0.9

    await until(lambda: a.heard.ended == [silent.incarnation], "the notice that wakes the others")
    assert f"runner.evicted incarnation={silent.incarnation} name={'s' * 100}" in caplog.text
    assert "shards=1" in caplog.text
    assert a.alive


async def test_many_that_are_silent_at_once(hearts: Hearts) -> None:
    """As with a host that is cut off."""
    a, b = await hearts.start(), await hearts.start()
    silent = [await hearts.silent() for _ in range(10)]
    for session in silent:
        await ended(session)
    await hearts.acquainted(a, b)
    assert a.alive
    assert b.alive


async def test_of_several_observers_one_evicts(hearts: Hearts, caplog: pytest.LogCaptureFixture) -> None:
    among = [await hearts.start(str(n)) for n in range(3)]
    silent = await hearts.silent()
    await ended(silent)
    await until(lambda: "runner.evicted" in caplog.text, "the log of the eviction")
    await hearts.acquainted(*among)
    assert len([record for record in caplog.records if "runner.evicted" in record.message]) == 1
    assert all(one.alive for one in among)


async def test_a_backend_that_does_not_end_is_told_of_once(
    hearts: Hearts, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in a while, and not with every beat."""
    a = await hearts.start("a")
    silent = await hearts.silent()
    os.kill(silent.backend.pid, signal.SIGSTOP)
    try:
        await until(lambda: "its backend has not ended yet" in caplog.text, "the log")
        await hearts.beats(a.session, 5)
    finally:
        os.kill(silent.backend.pid, signal.SIGCONT)
    await ended(silent)
    await until(lambda: a.heard.ended == [silent.incarnation], "the notice that wakes the others")
    assert caplog.text.count("runner.evicted") == 1


async def test_a_draining_runner_that_is_silent_is_evicted(hearts: Hearts) -> None:
    await hearts.start()
    silent = await hearts.silent()
    await silent.drain()
    await ended(silent)


async def test_a_runners_session_without_a_row_is_evicted(hearts: Hearts) -> None:
    await hearts.start()
    silent = await hearts.silent()
    await silent.acquire([hearts.cluster.facts.groups["default"].first_shard])
    hearts.sql.execute("DELETE FROM runner WHERE incarnation = %s", [silent.incarnation])
    await ended(silent)


async def test_beating_hearts_are_not_evicted(hearts: Hearts) -> None:
    among = [await hearts.start(str(n)) for n in range(3)]
    await asyncio.sleep(LONG)
    assert all(one.alive and not one.heard.ended and not one.heard.reasons for one in among)


async def test_code_without_a_heartbeat_is_not_judged(hearts: Hearts) -> None:
    a = await hearts.start()
    old = await hearts.silent("old code")
    runner_row(hearts.sql, old, "heartbeat = NULL")
    await asyncio.sleep(LONG)
    assert not old.lost.is_set()
    old.end("killed")
    await until(lambda: a.heard.ended == [old.incarnation], "its death notice")


async def test_who_has_just_rejoined_has_a_lease_time_of_its_own(hearts: Hearts) -> None:
    """The silence of its earlier incarnation is not counted."""
    await hearts.start()
    before = await hearts.silent("before")
    await asyncio.sleep(LEASE_TIME * 0.7)
    before.end("it joins again")
    after = await hearts.cluster.session(name="after", ghost=before.backend)
    assert await ended(after) >= LEASE_TIME * 0.9


async def test_a_stranger_is_logged_once_and_left_alone(
    hearts: Hearts, caplog: pytest.LogCaptureFixture
) -> None:
    a = await hearts.start()
    class_ = lock_class(SCHEMA, hearts.cluster.facts.namespace, "shard", "default")
    with hearts.sql.transaction():
        hearts.sql.execute("SELECT pg_advisory_lock(%s, n) FROM generate_series(0, 2) n", [class_])
        await hearts.beats(a.session, 1)
        await asyncio.sleep(LONG)
        strangers = [record.message for record in caplog.records if "stranger" in record.message]
        assert len(strangers) == 1
        assert f"pid={hearts.sql.info.backend_pid} application_name='tests' holds 3 shards" in strangers[0]
        hearts.sql.execute("SELECT 1")  # its session lives
    hearts.sql.execute("SELECT pg_advisory_unlock_all()")


async def test_a_stall_of_the_observer_evicts_nobody(hearts: Hearts) -> None:
    """Its machine stood still, and so did its peer's: the one that wakes first has seen no silence."""
    stalls: list[float] = []
    peer = await hearts.silent("beaten by the test")

    async def stall() -> None:
        # All of the thread stands still.
        if stalls:
            time.sleep(stalls.pop())  # noqa: ASYNC251

    a = await hearts.start("a", each_cycle=stall)
    await hearts.beats(a.session, 2)
    stalls.append(2 * LEASE_TIME)
    await until(lambda: not stalls, "the stall")
    await hearts.beats(a.session)
    await asyncio.sleep(LEASE_TIME / 2)
    runner_row(hearts.sql, peer, "heartbeat = heartbeat + 1")
    await asyncio.sleep(LEASE_TIME / 2)
    assert not peer.lost.is_set()


async def test_a_stall_of_postgres_evicts_nobody(
    private_servers: PrivateServers, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_hearts(private_servers.postgres_url, namespace) as hearts:
        among = [await hearts.start(str(n)) for n in range(3)]
        await hearts.acquainted(*among)
        for _ in range(3):
            private_servers.postgres.freeze()
            await asyncio.sleep(2 * LEASE_TIME)
            assert not any(one.heart.fresh() for one in among)
            private_servers.postgres.thaw()
            await hearts.acquainted(*among)
        await asyncio.sleep(LEASE_TIME)
        assert all(one.alive and not one.heard.reasons for one in among)
        assert "runner.evicted" not in caplog.text


async def test_runners_with_other_lease_times(hearts: Hearts) -> None:
    """One that is silent for longer than another one's lease time, and less than its own."""
    stalls: list[float] = []

    async def stall() -> None:
        if stalls:
            time.sleep(stalls.pop())  # noqa: ASYNC251

    short = await hearts.start("short")
    long = await hearts.start("long", each_cycle=stall, lease_time=4 * LEASE_TIME)
    await hearts.acquainted(short, long)
    stalls.append(2.5 * LEASE_TIME)
    await until(lambda: not stalls, "the silence")
    await hearts.beats(long.session)
    assert long.alive
    assert not short.heard.ended
    await hearts.acquainted(short, long)


# ----- the heart's own connection


async def test_who_gets_no_connection_is_heard_in_its_lease_session(
    hearts: Hearts, caplog: pytest.LogCaptureFixture
) -> None:
    """Every connection that there is to have is taken, and the hearts' have just ended."""
    caplog.set_level(logging.INFO)
    a, b = await hearts.start("a"), await hearts.start("b")
    await hearts.acquainted(a, b)
    silent = await hearts.silent()
    with no_more_connections(hearts.cluster.url):
        hearts.sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'entityq:% heart'"
        )
        await ended(silent)
        await until(lambda: f"runner.evicted incarnation={silent.incarnation}" in caplog.text, "its log")
        await asyncio.sleep(LONG)
        assert all(one.alive and one.heart.fresh() and one.spare.statements for one in (a, b))
        assert "heart.beats_again" not in caplog.text
    await until(lambda: caplog.text.count("heart.beats_again") == 2, "connections of their own")
    assert caplog.text.count("runner.evicted") == 1
    assert caplog.text.count("heart.failed") == 2


async def test_all_of_a_reconnection_has_one_deadline(
    private_servers: PrivateServers, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """None of its steps would take too long."""
    url = listen_on_tcp(private_servers)
    async with open_hearts(url, namespace, lease_time=3.0) as hearts, fault_proxy(url) as proxy:
        a = await hearts.start("a", url=proxy.url)
        await hearts.beats(a.session)
        proxy.delay(0.4, to_server=False, existing=False)
        proxy.cut()
        await until(lambda: a.spare.statements > 1, "beats in the lease session")
        assert "no new connection, with a beat on it, within 0.9 s" in caplog.text
        assert a.heart.fresh()
        proxy.heal()
        await hearts.beats(a.session, 2)


async def test_a_connection_that_is_terminated_is_reopened(
    hearts: Hearts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    a, b = await hearts.start("a"), await hearts.start("b")
    for _ in range(3):
        ended_backends = hearts.sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'entityq:% heart'"
        ).fetchall()
        assert len(ended_backends) == 2
        await hearts.beats(a.session, 3)
        await hearts.beats(b.session, 3)
    await asyncio.sleep(LEASE_TIME)
    assert a.alive
    assert b.alive
    assert "heart.failed" in caplog.text
    assert "heart.beats_again" in caplog.text
    assert "runner.evicted" not in caplog.text


async def test_a_black_holed_connection_is_given_up_in_time(
    private_servers: PrivateServers, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = listen_on_tcp(private_servers)
    async with open_hearts(url, namespace, lease_time=3.0) as hearts, fault_proxy(url) as proxy:
        await hearts.start("observer")
        a = await hearts.start("a", url=proxy.url)
        await hearts.beats(a.session)
        proxy.black_hole()
        proxy.heal(existing=False)
        await until(lambda: "heart.failed" in caplog.text, "the deadline")
        await hearts.beats(a.session, 2)
        assert a.alive
        assert a.heart.fresh()
        assert "runner.evicted" not in caplog.text


async def test_a_runner_that_cannot_be_heard_is_told(
    private_servers: PrivateServers, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not fresh, asks its lease session, and hears that it was evicted."""
    url = listen_on_tcp(private_servers)
    async with open_hearts(url, namespace) as hearts, fault_proxy(url) as proxy:
        await hearts.start("observer")
        a = await hearts.start("a", url=proxy.url)
        assert a.heart.fresh()
        before = a.heard.changes
        a.spare.silent = True
        proxy.black_hole()
        await ended(a.session)
        assert not a.heart.fresh()
        await until(lambda: a.heard.changes > before, "the look at the leases")
        proxy.cut()
        proxy.heal()
        a.spare.silent = False
        await until(lambda: a.heard.reasons, "that it is no member")
        assert not a.heart.fresh()
        assert "heart.was_silent" in caplog.text


async def test_a_terminated_lease_session_is_noticed(hearts: Hearts) -> None:
    a = await hearts.start()
    hearts.sql.execute("SELECT pg_terminate_backend(%s)", [a.session.backend.pid])
    await until(lambda: a.heard.reasons, "that it is no member")


async def test_a_removed_row_is_noticed(hearts: Hearts) -> None:
    a = await hearts.start()
    hearts.sql.execute("DELETE FROM runner WHERE incarnation = %s", [a.incarnation])
    await until(lambda: a.heard.reasons, "that it is no member")


async def test_without_postgres_there_is_no_heart(hearts: Hearts) -> None:
    with pytest.raises(PersistenceError):
        await hearts.start(url="postgresql://127.0.0.1:1/nothing")
    names = [thread.name for thread in threading.enumerate()]
    await until(lambda: "entityq heart" not in [thread.name for thread in threading.enumerate()], str(names))


async def test_it_stops_at_once_and_also_while_postgres_is_frozen(
    private_servers: PrivateServers, namespace: str
) -> None:
    async with open_hearts(private_servers.postgres_url, namespace, lease_time=600.0) as hearts:
        a, b = await hearts.start(), await hearts.start()
        await asyncio.wait_for(a.heart.stop(), 5)
        private_servers.postgres.freeze()
        async with asyncio.timeout(5):
            await b.heart.stop()
        private_servers.postgres.thaw()


async def test_more_work_in_each_cycle(hearts: Hearts) -> None:
    answers: list[object] = []

    async def ask() -> None:
        for one in asking:
            answers.extend(await one.heart.execute(b"SELECT current_setting('application_name')"))
        asking.clear()

    asking: list[Beating] = []
    a = await hearts.start(each_cycle=ask)
    asking.append(a)
    await until(lambda: answers, "an answer")
    assert answers == [(f"entityq:{a.incarnation} heart",)]


async def test_a_heart_that_fails_for_good_ends_its_member(
    hearts: Hearts, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("a mistake in the code")

    a = await hearts.start(each_cycle=fail)
    await until(lambda: a.heard.reasons, "its end")
    assert "a mistake in the code" in a.heard.reasons[0]
    assert "heart.stopped" in caplog.text
