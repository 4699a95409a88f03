import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
from psycopg.errors import DivisionByZero

from entityq.errors import PersistenceError
from entityq.postgres.connect import Connection, connect, fetch_value
from entityq.postgres.session import ConnectionLost, Session
from tests.support.servers import PrivateServers


@pytest.fixture
async def session(postgres_url: str) -> AsyncIterator[Session]:
    session = Session(partial(connect, postgres_url, schema="entityq"), deadline=1.0)
    yield session
    await session.close()


async def value(session: Session, query: bytes) -> object:
    return await session.run(lambda connection: fetch_value(connection, query))


async def test_statements_share_one_connection_one_at_a_time(session: Session) -> None:
    active = 0

    async def statement(connection: Connection) -> object:
        nonlocal active
        active += 1
        assert active == 1
        pid = await fetch_value(connection, b"SELECT pg_backend_pid() FROM pg_sleep(0.01)")
        active -= 1
        return pid

    assert len({await each for each in asyncio.as_completed([session.run(statement) for _ in range(5)])}) == 1


async def test_a_refused_statement_leaves_the_connection(session: Session) -> None:
    pid = await value(session, b"SELECT pg_backend_pid()")
    with pytest.raises(DivisionByZero):
        await value(session, b"SELECT 1 / 0")
    assert await value(session, b"SELECT pg_backend_pid()") == pid


async def test_a_session_that_ends_in_the_middle_is_lost_and_the_next_is_another(session: Session) -> None:
    pid = await value(session, b"SELECT pg_backend_pid()")
    with pytest.raises(ConnectionLost):
        await value(session, b"SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(1)")
    assert await value(session, b"SELECT pg_backend_pid()") != pid


async def test_what_takes_too_long_is_lost(session: Session) -> None:
    with pytest.raises(ConnectionLost, match="no answer within 1 s"):
        await value(session, b"SELECT pg_sleep(10)")
    assert await value(session, b"SELECT 1") == 1


async def test_the_answer_to_a_cancelled_statement_is_nobody_elses(session: Session) -> None:
    for _ in range(5):
        slow = asyncio.create_task(value(session, b"SELECT 'slow' FROM pg_sleep(0.05)"))
        await asyncio.wait([slow], timeout=0.02)
        slow.cancel()
        assert await value(session, b"SELECT 'fast'") == "fast"
        await asyncio.gather(slow, return_exceptions=True)


async def test_without_a_server_nothing_was_sent(private_servers: PrivateServers) -> None:
    session = Session(partial(connect, private_servers.postgres_url, schema="entityq"))
    assert await value(session, b"SELECT 1") == 1
    await asyncio.to_thread(private_servers.postgres.stop)
    with pytest.raises(PersistenceError):
        await value(session, b"SELECT 1")
    await asyncio.to_thread(private_servers.postgres.start)
    assert await value(session, b"SELECT 1") == 1
    await session.close()
    with pytest.raises(PersistenceError, match="closed"):
        await value(session, b"SELECT 1")


async def test_a_cancellation_that_psycopg_lost_is_passed_on(session: Session) -> None:
    started = asyncio.Event()

    async def statement(connection: Connection) -> object:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # as asyncio.wait_for of Python 3.11 when its result is there
            return await fetch_value(connection, b"SELECT 1")
        raise AssertionError("the event is never set")

    task = asyncio.create_task(session.run(statement))
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await value(session, b"SELECT 2") == 2
