from typing import Any
from uuid import uuid4

import pytest

from entityq.errors import UnsafeConfiguration
from entityq.redis.connect import open_client
from entityq.redis.keys import Keys
from entityq.redis.safety import check_server, claim_namespace, refuse_server

ADDRESS = "redis://cache"


async def test_the_server_of_the_tests_is_good(redis_url: str) -> None:
    async with open_client(redis_url) as client:
        await check_server(client, ADDRESS)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru"])
async def test_p8_an_evicting_redis_is_refused(redis_url: str, policy: str) -> None:
    async with open_client(redis_url) as client:
        commands: Any = client
        await commands.config_set("maxmemory-policy", policy)
        try:
            with pytest.raises(
                UnsafeConfiguration, match=rf"redis://cache evicts keys .*{policy}.*noeviction"
            ):
                await check_server(client, ADDRESS)
        finally:
            await commands.config_set("maxmemory-policy", "noeviction")


def test_p8_an_old_server_is_refused() -> None:
    # No package has an older server: the decision, not the real thing.
    for good in ("6.2.0", "7.2.4", "10.0.1"):
        refuse_server(ADDRESS, version=good, policy="noeviction")
    for old in ("6.0.16", "5.0", "2.8.24"):
        with pytest.raises(UnsafeConfiguration, match=rf"speaks Redis {old}.*6\.2 or later"):
            refuse_server(ADDRESS, version=old, policy="noeviction")


async def test_a_missing_cluster_id_is_written_again(redis_url: str, namespace: str) -> None:
    keys, cluster_id = Keys(namespace), uuid4()
    async with open_client(redis_url) as client:
        await claim_namespace(client, ADDRESS, keys, cluster_id)
        await claim_namespace(client, ADDRESS, keys, cluster_id)
        commands: Any = client
        await commands.flushall()
        await claim_namespace(client, ADDRESS, keys, cluster_id)
        assert await client.get(keys.cluster()) == str(cluster_id).encode()


async def test_p8_another_cluster_on_the_same_namespace_is_refused(redis_url: str, namespace: str) -> None:
    keys, first, second = Keys(namespace), uuid4(), uuid4()
    async with open_client(redis_url) as client:
        await claim_namespace(client, ADDRESS, keys, first)
        with pytest.raises(
            UnsafeConfiguration, match=f"another cluster .*{first} there, {second} in Postgres"
        ):
            await claim_namespace(client, ADDRESS, keys, second)
        assert await client.get(keys.cluster()) == str(first).encode()
