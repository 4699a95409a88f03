import asyncio

import psycopg
import pytest

from entityq.errors import UnsafeConfiguration
from entityq.postgres.connect import connect, fetch_value
from entityq.postgres.facts import Facts, ensure_cluster, register_types
from entityq.postgres.migrate import migrate

SCHEMA = "entityq"


@pytest.fixture
async def url(empty_postgres_url: str) -> str:
    async with await connect(empty_postgres_url, schema=SCHEMA) as connection:
        await migrate(connection, schema=SCHEMA, namespace="bank", shards=7)
    return empty_postgres_url


async def register(url: str, types: dict[str, str], namespace: str = "bank") -> Facts:
    async with await connect(url, schema=SCHEMA) as connection:
        return await register_types(connection, namespace, types)


async def test_a_new_cluster_has_an_id_and_nothing_else(url: str) -> None:
    facts = await register(url, {})
    assert facts.cluster_id.version == 4
    assert (facts.default_shards, facts.groups, facts.types) == (7, {}, {})


async def test_types_get_their_groups_and_groups_their_shards(url: str) -> None:
    facts = await register(url, {"Account": "default", "Mail": "slow", "Task": "default"})
    assert facts.types == {"Account": "default", "Mail": "slow", "Task": "default"}
    assert {name: (group.shards, group.first_shard) for name, group in facts.groups.items()} == {
        "default": (7, 0),
        "slow": (7, 7),
    }
    later = await register(url, {"Account": "default", "Log": "logs"})
    assert later.groups["logs"].first_shard == 14
    assert later.types["Mail"] == "slow"
    with psycopg.connect(url) as owner:
        rows = owner.execute(
            "SELECT s.shard_id, g.name, s.number FROM entityq.shard s"
            " JOIN entityq.shard_group g USING (group_id) ORDER BY 1"
        ).fetchall()
    assert rows == [(id_, ("default", "slow", "logs")[id_ // 7], id_ % 7) for id_ in range(21)]


async def test_shard_ids_are_not_shared_with_another_namespace(url: str) -> None:
    async with await connect(url, schema=SCHEMA) as connection:
        await ensure_cluster(connection, "other", 3)
    assert (await register(url, {"A": "default"})).groups["default"].first_shard == 0
    other = await register(url, {"A": "default"}, "other")
    assert (other.groups["default"].first_shard, other.groups["default"].shards) == (7, 3)
    assert other.cluster_id != (await register(url, {})).cluster_id


@pytest.mark.parametrize("shards", [1, 2, 7, 100, 10_000])
async def test_wrap_makes_the_shard_of_a_signed_hash_that_of_the_unsigned(url: str, shards: int) -> None:
    async with await connect(url, schema=SCHEMA) as connection:
        await ensure_cluster(connection, "other", shards)
        await register_types(connection, "other", {"A": "default"})
        wrap = await fetch_value(connection, b"SELECT wrap FROM shard_group")
    assert wrap == 2**64 % shards


async def test_many_register_the_same_types_at_once(url: str) -> None:
    types = {f"Type{number}": f"group{number % 3}" for number in range(9)}
    found = await asyncio.gather(*(register(url, types) for _ in range(8)))
    assert all(facts == found[0] for facts in found)
    assert sorted(group.first_shard for group in found[0].groups.values()) == [0, 7, 14]


async def test_known_types_are_registered_without_a_lock(url: str) -> None:
    await register(url, {"Account": "default"})
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE entityq.shard_group IN SHARE ROW EXCLUSIVE MODE")
        assert (await register(url, {"Account": "default"})).types == {"Account": "default"}


async def test_p8_a_type_in_another_group_is_refused(url: str) -> None:
    await register(url, {"Account": "default"})
    with pytest.raises(
        UnsafeConfiguration, match=r'Account belongs to shard group default .*shard_group="default"'
    ):
        await register(url, {"New": "default", "Account": "slow"})
    assert "New" not in (await register(url, {})).types


async def test_p8_an_unknown_namespace_is_refused(url: str) -> None:
    with pytest.raises(UnsafeConfiguration, match=r"no cluster with the namespace other.*entityq migrate"):
        await register(url, {}, "other")


async def test_p8_an_unknown_format_is_refused(url: str) -> None:
    with psycopg.connect(url) as owner:
        owner.execute("UPDATE entityq.cluster SET format_version = 2")
    with pytest.raises(UnsafeConfiguration, match="stores format 2; this code knows 1"):
        await register(url, {})
