"""What a purge removes, empties and leaves alone."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from psycopg.errors import LockNotAvailable, SerializationFailure

from entityq.address import Address
from entityq.definition import EntityDefinition
from entityq.entity import Entity, message
from entityq.postgres.connect import Connection, connect, open_pool
from entityq.postgres.facts import Facts, Group, register_types
from entityq.postgres.outbox import NewRequest, insert_requests, read_conflicts
from entityq.postgres.retention import Purged, Retention, declare
from entityq.registration import EntityOptions, define_entity
from tests.support.servers import SCHEMA

HOUR, DAY = 3600.0, 86_400.0
ALL = 2**62


class Account(Entity):
    @message(keep=timedelta(hours=2), keep_keys=timedelta(days=1))
    async def deposit(self) -> None: ...

    @message
    async def note(self) -> None: ...

    @message(persisted=False)
    async def read(self) -> None: ...


ACCOUNT = define_entity(Account, EntityOptions())


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[Connection]:
    async with await connect(postgres_url, schema=SCHEMA) as connection:
        yield connection


@pytest.fixture
async def facts(connection: Connection, namespace: str) -> Facts:
    return await register_types(connection, namespace, {"Account": "default", "Mail": "mails"})


@pytest.fixture
async def retention(postgres_url: str, namespace: str) -> AsyncIterator[Retention]:
    async with open_pool(postgres_url, schema=SCHEMA, size=1) as pool:
        yield Retention(pool, namespace, keep=HOUR, keep_keys=2 * DAY)


@pytest.fixture
async def group(connection: Connection, facts: Facts, namespace: str) -> Group:
    await declared(connection, namespace, ACCOUNT)
    return facts.groups["default"]


async def declared(connection: Connection, namespace: str, *definitions: EntityDefinition) -> None:
    by_type = {definition.type: definition for definition in definitions}
    await declare(connection, namespace, by_type, keep=3 * HOUR, keep_keys=3 * DAY)


def request(
    request_id: int, name: str = "deposit", *, digest: bytes | None = None, type_: str = "Account"
) -> NewRequest:
    return NewRequest(request_id, Address(type_, "a"), name, digest, b"hash", b"envelope")


async def stored(
    connection: Connection, namespace: str, *requests: NewRequest, answered: float | None
) -> None:
    """`answered`: so many seconds ago."""
    assert len(await insert_requests(connection, namespace, requests)) == len(requests)
    if answered is not None:
        ids = [each.request_id for each in requests]
        await connection.execute(
            "UPDATE outbox SET reply = 'reply', replied_at = now() - make_interval(secs => %s)"
            " WHERE request_id = ANY (%s)",
            [answered, ids],
        )
        await connection.execute("DELETE FROM pending WHERE request_id = ANY (%s)", [ids])


async def left(connection: Connection) -> dict[int, bytes | None]:
    rows = await (await connection.execute("SELECT request_id, reply FROM outbox ORDER BY 1")).fetchall()
    return dict(rows)


async def test_terms_are_those_of_the_group_and_the_defaults(
    connection: Connection, group: Group, facts: Facts, retention: Retention, namespace: str
) -> None:
    assert (await retention.terms(group)).kept == (HOUR, 2 * HOUR, 3 * HOUR, DAY, 2 * DAY, 3 * DAY)
    assert (await retention.terms(facts.groups["mails"])).kept == (HOUR, 2 * DAY)


async def test_what_is_declared_again_replaces_what_was(
    connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    by_type = {"Account": ACCOUNT}
    await asyncio.gather(
        *(declare(connection, namespace, by_type, keep=4 * HOUR, keep_keys=HOUR) for _ in range(2))
    )
    # A key is not given up before its reply.
    assert (await retention.terms(group)).kept == (HOUR, 2 * HOUR, 4 * HOUR, DAY, 2 * DAY)


async def test_replies_go_when_the_message_says(
    connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    await stored(connection, namespace, request(1), request(2, "note"), answered=2 * HOUR + 60)
    await stored(connection, namespace, request(3), answered=2 * HOUR - 60)
    await stored(connection, namespace, request(4, "note"), answered=3 * HOUR + 60)

    assert await retention.purge(group, 0, ALL, 100) == Purged(4, 4, removed=2, emptied=0)
    assert await left(connection) == {2: b"reply", 3: b"reply"}


async def test_the_chunks_of_streams_go_with_their_replies(
    connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    """Also where the key stays."""
    await stored(connection, namespace, request(1), request(2, digest=b"key"), answered=2 * HOUR + 60)
    await stored(connection, namespace, request(3), answered=60)
    await stored(connection, namespace, request(4), answered=None)
    await connection.execute(
        "INSERT INTO chunk (request_id, number, value)"
        " SELECT request_id, number, '' FROM generate_series(1, 4) request_id, generate_series(1, 2) number"
    )
    await retention.purge(group, 0, ALL, 100)
    rows = await (await connection.execute("SELECT request_id FROM chunk ORDER BY 1")).fetchall()
    assert [request_id for (request_id,) in rows] == [3, 3, 4, 4]


async def test_messages_that_nobody_has_declared_are_kept_as_the_settings_say(
    connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    await stored(connection, namespace, request(1, "old"), answered=HOUR + 60)
    await stored(connection, namespace, request(2, "old"), answered=HOUR - 60)
    await retention.purge(group, 0, ALL, 100)
    assert list(await left(connection)) == [2]


async def test_a_key_stays_without_its_reply_and_then_goes(
    connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    await stored(connection, namespace, request(1, digest=b"k"), answered=3 * HOUR)
    await stored(connection, namespace, request(2, digest=b"l"), answered=DAY + 60)

    assert await retention.purge(group, 0, ALL, 100) == Purged(2, 2, removed=1, emptied=1)
    assert await retention.purge(group, 0, ALL, 100) == Purged(1, 1, removed=0, emptied=0)

    again = request(3, digest=b"k")
    assert await insert_requests(connection, namespace, [again]) == {}
    (known,) = await read_conflicts(connection, [again])
    assert (known.request_id, known.expired, known.payload_hash) == (1, True, b"hash")
    await connection.execute("UPDATE outbox SET replied_at = now() - interval '1 day 1 minute'")
    assert await retention.purge(group, 0, ALL, 100) == Purged(1, 1, removed=1, emptied=0)
    assert set(await insert_requests(connection, namespace, [again])) == {3}


async def test_what_is_unanswered_is_left_alone(
    connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    await stored(connection, namespace, request(1), request(2, digest=b"k"), answered=None)
    await connection.execute("UPDATE outbox SET created_at = now() - interval '1 year'")
    assert await retention.purge(group, 0, ALL, 100) == Purged(2, 2, removed=0, emptied=0)


async def test_other_groups_and_namespaces_are_left_alone(
    connection: Connection, group: Group, facts: Facts, retention: Retention, namespace: str
) -> None:
    await stored(connection, namespace, request(1, type_="Mail"), answered=DAY)
    assert await retention.purge(group, 0, ALL, 100) == Purged(1, 1, removed=0, emptied=0)
    assert await retention.purge(facts.groups["mails"], 0, ALL, 100) == Purged(1, 1, removed=1, emptied=0)


async def test_pages(connection: Connection, group: Group, retention: Retention, namespace: str) -> None:
    await stored(connection, namespace, *(request(n) for n in range(1, 8)), answered=DAY)
    assert await retention.purge(group, 1, 6, 3) == Purged(4, 3, removed=3, emptied=0)
    assert await retention.purge(group, 4, 6, 3) == Purged(6, 2, removed=2, emptied=0)
    assert await retention.purge(group, 6, 6, 3) == Purged(6, 0, removed=0, emptied=0)
    assert list(await left(connection)) == [1, 7]


async def test_a_dead_letter_that_nobody_has_handled_keeps_its_request(
    connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    await stored(connection, namespace, *(request(n) for n in range(1, 4)), answered=DAY)
    for request_id, requeued in ((1, False), (2, True)):
        await connection.execute(
            "INSERT INTO dead_letter (request_id, namespace, type, entity_id, message, attempts, error_type, error,"
            " cause, requeued_at) VALUES (%s, %s, 'Account', 'a', 'deposit', 1, 'X', '', '{}',"
            " CASE WHEN %s THEN now() END)",
            [request_id, namespace, requeued],
        )
        await connection.execute("INSERT INTO signal (request_id, name) VALUES (%s, 's')", [request_id])
    await retention.purge(group, 0, ALL, 100)
    assert list(await left(connection)) == [1]
    for table in ("dead_letter", "signal"):
        cursor = await connection.execute(f"SELECT request_id FROM {table}".encode())
        assert await cursor.fetchall() == [(1,)]


async def test_a_request_that_is_requeued_meanwhile_is_left_alone(
    postgres_url: str, connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    for first, requeue in (
        (1, "UPDATE outbox SET reply = NULL"),
        (3, "UPDATE outbox SET reply = 'new', replied_at = now()"),
    ):
        requests = request(first), request(first + 1, digest=b"k%d" % first)
        await stored(connection, namespace, *requests, answered=2 * HOUR + 60)
        async with await connect(postgres_url, schema=SCHEMA) as other:
            async with connection.transaction():
                await connection.execute(requeue.encode())
                purging = asyncio.create_task(retention.purge(group, first - 1, ALL, 100))
                while not await blocked(other):
                    assert not purging.done()
            assert await purging == Purged(first + 1, 2, removed=0, emptied=0)
    assert set((await left(connection)).values()) == {b"new"}


async def blocked(connection: Connection) -> bool:
    cursor = await connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return await cursor.fetchone() != (0,)


async def test_no_insert_is_accepted_however_old_its_snapshot(
    postgres_url: str, connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    """The transaction sees neither the purge nor the first request, which came after its snapshot."""
    async with await connect(postgres_url, schema=SCHEMA) as slow:
        await slow.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await slow.execute("SELECT count(*) FROM outbox")
        await stored(connection, namespace, request(1, digest=b"k"), answered=3 * HOUR)
        assert (await retention.purge(group, 0, ALL, 100)).emptied == 1
        with pytest.raises(SerializationFailure):
            await insert_requests(slow, namespace, [request(2, digest=b"k")])
        await slow.execute("ROLLBACK")
    assert list(await left(connection)) == [1]


async def test_no_insert_is_accepted_that_waits_while_its_key_expires(
    postgres_url: str, connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    """It has its snapshot, and waits for somebody else's row; the repeated key is the second one of its batch."""
    await stored(connection, namespace, request(1, digest=b"k2"), answered=3 * HOUR)
    async with (
        await connect(postgres_url, schema=SCHEMA) as other,
        await connect(postgres_url, schema=SCHEMA) as slow,
    ):
        await slow.execute("SELECT set_config('lock_timeout', '10s', false)")
        async with other.transaction(force_rollback=True):
            await insert_requests(other, namespace, [request(2, digest=b"k1")])
            batch = [request(3, digest=b"k1"), request(4, digest=b"k2")]
            inserting = asyncio.create_task(insert_requests(slow, namespace, batch))
            while not await blocked(connection):
                assert not inserting.done()
            assert (await retention.purge(group, 0, ALL, 100)).emptied == 1
        assert set(await inserting) == {3}
    assert set(await left(connection)) == {1, 3}


async def test_a_purge_waits_for_nobody_long(
    postgres_url: str, connection: Connection, group: Group, retention: Retention, namespace: str
) -> None:
    """The whole page is tried again later."""
    await stored(connection, namespace, request(1), request(2), answered=DAY)
    async with connection.transaction():
        await connection.execute("SELECT 1 FROM outbox WHERE request_id = 2 FOR UPDATE")
        with pytest.raises(LockNotAvailable):
            await retention.purge(group, 0, ALL, 100)
    assert (await retention.purge(group, 0, ALL, 100)).removed == 2
