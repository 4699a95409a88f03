"""The statements of the sending half, directly."""

from collections.abc import AsyncIterator

import pytest

from entityq.address import Address, entity_hash, shard_number
from entityq.postgres.connect import Connection, connect
from entityq.postgres.facts import Facts, register_types
from entityq.postgres.outbox import (
    NewRequest,
    Stored,
    count_pending,
    estimate_pending,
    insert_requests,
    read_conflicts,
    read_replies,
    read_status,
)


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[Connection]:
    async with await connect(postgres_url, schema="entityq") as connection:
        yield connection


@pytest.fixture
async def facts(connection: Connection, namespace: str) -> Facts:
    return await register_types(connection, namespace, {"Account": "default", "Mail": "mails"})


def request(
    request_id: int, entity_id: str = "a", *, type_: str = "Account", digest: bytes | None = None
) -> NewRequest:
    return NewRequest(request_id, Address(type_, entity_id), "m", digest, b"hash", b"envelope")


async def test_shards_are_computed_from_the_facts(
    connection: Connection, facts: Facts, namespace: str
) -> None:
    requests = [
        request(n * 2 + kind, f"id-{n}", type_=type_)
        for n in range(300)
        for kind, type_ in enumerate(("Account", "Mail"))
    ]
    stored = await insert_requests(connection, namespace, requests)
    assert len(stored) == 600
    for each in requests:
        group = facts.groups[facts.types[each.address.type]]
        shard = facts.shard(stored[each.request_id].shard_id)
        assert shard.group == group.name
        assert shard.number == shard_number(entity_hash(each.address.id), group.shards)


async def test_numbers_are_drawn_in_the_order_of_sending(
    connection: Connection, facts: Facts, namespace: str
) -> None:
    digests = [b"z", b"m", None, b"a", None, b"q"]
    requests = [request(100 - n, digest=digest) for n, digest in enumerate(digests)]
    stored = await insert_requests(connection, namespace, requests)
    seqs = [stored[each.request_id].seq for each in requests]
    assert seqs == sorted(seqs)
    assert isinstance(stored[100], Stored)


async def test_conflicts_are_not_returned_and_can_be_read(
    connection: Connection, facts: Facts, namespace: str
) -> None:
    first = await insert_requests(connection, namespace, [request(1, digest=b"k"), request(2)])
    again = [request(3, digest=b"k"), request(2, "b"), request(4)]
    assert set(await insert_requests(connection, namespace, again)) == {4}
    known = {each.request_id: each for each in await read_conflicts(connection, again[:2])}
    assert set(known) == {1, 2}
    assert (known[1].seq, known[1].shard_id) == (first[1].seq, first[1].shard_id)
    assert known[1].key_digest == b"k"
    assert known[2].address == Address("Account", "a")
    assert known[2].reply is None
    assert known[2].payload_hash == b"hash"


async def test_a_type_that_the_cluster_does_not_have_is_not_stored(
    connection: Connection, facts: Facts, namespace: str
) -> None:
    assert await insert_requests(connection, namespace, [request(1, type_="Unknown")]) == {}
    assert await insert_requests(connection, "another", [request(1)]) == {}


async def test_replies_that_there_are(connection: Connection, facts: Facts, namespace: str) -> None:
    await insert_requests(connection, namespace, [request(1), request(2)])
    await connection.execute(b"UPDATE outbox SET reply = 'r' WHERE request_id = 1")
    assert await read_replies(connection, [1, 2, 3]) == {1: b"r", 2: None}


async def test_pending_requests_of_a_group_are_counted_up_to_a_bound(
    connection: Connection, facts: Facts, namespace: str
) -> None:
    await insert_requests(connection, namespace, [request(n) for n in range(20)])
    await insert_requests(connection, namespace, [request(n, type_="Mail") for n in range(20, 25)])
    assert await count_pending(connection, namespace, "default", 100) == 20
    assert await count_pending(connection, namespace, "default", 7) == 7
    assert await count_pending(connection, namespace, "mails", 100) == 5
    assert await count_pending(connection, "another", "default", 100) == 0
    assert await estimate_pending(connection) >= 0


async def test_status_of_an_unknown_type(connection: Connection, facts: Facts, namespace: str) -> None:
    status = await read_status(connection, namespace, Address("Unknown", "a"))
    assert (status.outcome, status.updated_at, status.processing) == (None, None, False)
