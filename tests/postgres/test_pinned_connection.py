"""The connection that must not be lost unnoticed."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest
import uvloop

from entityq.errors import PersistenceError
from entityq.postgres.connect import connect_lease
from entityq.postgres.pinned_connection import LeaseLost, PinnedConnection
from tests.support.servers import SCHEMA, Connection, PrivateServers, connected
from tests.support.waiting import eventually, eventually_async

SLEEP = b"SELECT pg_sleep(30)"


@asynccontextmanager
async def pinned_to(url: str, deadline: float = 5.0) -> AsyncGenerator[PinnedConnection]:
    pinned = PinnedConnection(await connect_lease(url, schema=SCHEMA), deadline)
    try:
        yield pinned
    finally:
        pinned.end("the test is over")


@pytest.fixture
async def pinned(postgres_url: str) -> AsyncGenerator[PinnedConnection]:
    async with pinned_to(postgres_url) as opened:
        yield opened


async def pid_of(pinned: PinnedConnection) -> int:
    ((pid,),) = await pinned.execute(b"SELECT pg_backend_pid()")
    return int(pid)


def until_it_sleeps(server: Connection, pid: int) -> None:
    running = (
        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND query LIKE '%%pg_sleep%%' AND state = 'active'"
    )
    eventually(lambda: server.execute(running, [pid]).fetchone())


def ended(server: Connection, pid: int) -> bool:
    return server.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() is None


async def test_statements_take_their_turns(pinned: PinnedConnection) -> None:
    results = await asyncio.gather(*[pinned.execute(b"SELECT %(n)b::int", {"n": n}) for n in range(200)])
    assert results == [[(n,)] for n in range(200)]
    assert await pinned.execute(b"SET work_mem = '5MB'") == []


async def test_the_end_is_noticed_while_idle(pinned: PinnedConnection, server: Connection) -> None:
    pid = await pid_of(pinned)
    server.execute("SELECT pg_terminate_backend(%s)", [pid])
    async with asyncio.timeout(1):
        await pinned.lost.wait()
    assert pinned.reason == (
        "Postgres closed the connection: terminating connection due to administrator command"
    )
    with pytest.raises(LeaseLost, match="administrator command"):
        await pinned.execute(b"SELECT 1")


async def test_notifications_between_statements_are_heard_at_once(
    pinned: PinnedConnection, postgres_url: str
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await pinned.listen("news", heard.put_nowait)
    with connected(postgres_url) as other:
        other.execute("NOTIFY other, 'x'")
        other.execute("NOTIFY news, 'a'")
        assert await asyncio.wait_for(heard.get(), 5) == "a"
        other.execute("NOTIFY news, 'b'")
        assert await asyncio.wait_for(heard.get(), 5) == "b"
    assert await pinned.execute(b"SELECT 1") == [(1,)]
    assert not pinned.lost.is_set()


async def test_no_notification_is_lost_under_a_load_of_statements(
    pinned: PinnedConnection, postgres_url: str
) -> None:
    """Most of them come in one piece with the answer of a statement."""
    heard: list[str] = []
    await pinned.listen("news", heard.append)

    def notify() -> None:
        with connected(postgres_url) as other:
            for number in range(300):
                other.execute("SELECT pg_notify('news', %s)", [str(number)])

    notifying = asyncio.create_task(asyncio.to_thread(notify))
    while not notifying.done():
        await pinned.execute(b"SELECT 1")
    await notifying
    await eventually_async(lambda: _ready(len(heard) == 300))
    assert heard == [str(number) for number in range(300)]


async def _ready(value: bool) -> bool:
    return value


async def test_a_notification_of_its_own_statement_is_heard(pinned: PinnedConnection) -> None:
    heard: list[str] = []
    await pinned.listen("news", heard.append)
    for number in range(20):
        await pinned.execute(b"SELECT pg_notify('news', %(n)b::text)", {"n": str(number)})
        # Without a turn of the loop in which the socket could be read.
        assert heard == [str(n) for n in range(number + 1)]


async def test_the_end_is_noticed_during_a_statement(pinned: PinnedConnection, server: Connection) -> None:
    pid = await pid_of(pinned)
    statement = asyncio.create_task(pinned.execute(SLEEP))
    await asyncio.to_thread(until_it_sleeps, server, pid)
    server.execute("SELECT pg_terminate_backend(%s)", [pid])
    async with asyncio.timeout(1):
        with pytest.raises(LeaseLost, match="administrator command"):
            await statement
    # It was the statement that found out: the watch does not read while one runs.
    assert pinned.reason.startswith("the connection failed")


async def test_a_cancelled_statement_ends_it_at_once(pinned: PinnedConnection, server: Connection) -> None:
    pid = await pid_of(pinned)
    statement = asyncio.create_task(pinned.execute(SLEEP))
    await asyncio.to_thread(until_it_sleeps, server, pid)
    statement.cancel()
    async with asyncio.timeout(0.2):
        with pytest.raises(asyncio.CancelledError):
            await statement
    assert pinned.reason == "a statement was cancelled"
    # client_connection_check_interval: the server ends a statement whose client has gone.
    await asyncio.to_thread(eventually, lambda: ended(server, pid))


async def test_a_statement_that_is_cancelled_before_its_turn_is_never_sent(pinned: PinnedConnection) -> None:
    first = asyncio.create_task(pinned.execute(b"SELECT pg_sleep(0.2)"))
    second = asyncio.create_task(pinned.execute(SLEEP))
    third = asyncio.create_task(pinned.execute(b"SELECT 3"))
    await asyncio.sleep(0)
    second.cancel()
    async with asyncio.timeout(2):
        await first
        assert await third == [(3,)]
    assert not pinned.lost.is_set()


async def test_random_cancellations_never_mix_up_results(postgres_url: str) -> None:
    """Whatever a cancellation hits: the answer is one's own, or the connection has ended."""
    for round_ in range(20):
        async with pinned_to(postgres_url) as pinned:
            tasks = [asyncio.create_task(pinned.execute(b"SELECT %(n)b::int", {"n": n})) for n in range(20)]
            asyncio.get_running_loop().call_later(0.0005 * round_, tasks[round_ % 20].cancel)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for n, result in enumerate(results):
                if isinstance(result, BaseException):
                    assert isinstance(result, (LeaseLost, asyncio.CancelledError))
                else:
                    assert result == [(n,)]


async def test_beyond_the_deadline_it_ends_and_what_waits_is_never_sent(postgres_url: str) -> None:
    """STO-21: within the deadline, with one statement in flight."""
    async with pinned_to(postgres_url, deadline=0.3) as pinned:
        started = time.monotonic()
        waiting = [pinned.execute(SLEEP) for _ in range(3)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert 0.3 <= time.monotonic() - started < 0.6
        assert [str(result) for result in results] == ["Postgres did not answer within 0.3 s"] * 3
        assert all(isinstance(result, LeaseLost) for result in results)


async def test_a_frozen_server_holds_nobody_up(private_servers: PrivateServers) -> None:
    """STO-22 to STO-24: nothing waits for the old connection, or for another one that hangs, too."""
    url = private_servers.postgres_url
    async with pinned_to(url, deadline=0.3) as pinned:
        private_servers.postgres.freeze()
        started = time.monotonic()
        with pytest.raises(LeaseLost, match="did not answer"):
            await pinned.execute(b"SELECT 1")
        with pytest.raises(PersistenceError):
            await connect_lease(url, schema=SCHEMA, deadline=0.3)
        assert time.monotonic() - started < 1
        private_servers.postgres.thaw()
    async with pinned_to(url) as following:
        assert await following.execute(b"SELECT 1") == [(1,)]


async def test_errors_of_a_statement_pass(pinned: PinnedConnection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await pinned.execute(b"SELECT 1 / 0")
    with pytest.raises(psycopg.errors.SyntaxError):
        await pinned.execute(b"SELEKT")
    assert await pinned.execute(b"SELECT 1") == [(1,)]


async def test_a_session_left_inside_a_failed_transaction_is_not_used_again(pinned: PinnedConnection) -> None:
    await pinned.execute(b"BEGIN")
    with pytest.raises(LeaseLost):
        await pinned.execute(b"SELECT 1 / 0")


async def test_only_the_first_reason_counts(pinned: PinnedConnection) -> None:
    pinned.end("first")
    pinned.end("second")
    assert pinned.reason == "first"


@pytest.mark.parametrize(
    "test",
    [
        test_the_end_is_noticed_while_idle,
        test_the_end_is_noticed_during_a_statement,
        test_a_cancelled_statement_ends_it_at_once,
    ],
)
def test_the_same_on_uvloop(
    test: Callable[[PinnedConnection, Connection], Awaitable[None]], postgres_url: str, server: Connection
) -> None:
    """Its readers are libuv's: they must not be left on a closed socket."""

    async def body() -> None:
        async with pinned_to(postgres_url) as pinned:
            await test(pinned, server)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())
