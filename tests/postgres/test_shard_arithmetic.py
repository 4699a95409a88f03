"""The shard that SQL computes from a signed hash is the shard that Python computes from the unsigned one."""

import secrets

import pytest

from entityq.address import Address, entity_hash, shard_number
from entityq.postgres.connect import connect, fetch_value
from entityq.postgres.facts import ensure_cluster, register_types
from entityq.postgres.outbox import NewRequest, insert_requests


@pytest.mark.parametrize("shards", [1, 7, 100, 1_000])
async def test_rows_are_placed_where_clients_look_for_them(
    postgres_url: str, namespace: str, shards: int
) -> None:
    addresses = [Address("Account", secrets.token_hex(6)) for _ in range(300)]
    assert any(entity_hash(address.id) >= 2**63 for address in addresses)
    rows = [
        NewRequest(number, address, "deposit", None, bytes(32), b"envelope")
        for number, address in enumerate(addresses, start=1)
    ]
    async with await connect(postgres_url, schema="entityq", application_name="tests") as connection:
        other = f"{namespace}-{shards}"
        await ensure_cluster(connection, other, shards)
        facts = await register_types(connection, other, {"Account": "default"})
        stored = await insert_requests(connection, other, rows)
        assert await fetch_value(connection, b"SELECT count(*) FROM pending") == len(rows)
    found = [facts.shard(stored[row.request_id].shard_id).number for row in rows]
    assert found == [shard_number(entity_hash(address.id), shards) for address in addresses]
