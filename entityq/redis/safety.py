"""What entityq refuses to start on (promise 8), as far as Redis is concerned."""

import asyncio
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

from entityq.errors import UnsafeConfiguration
from entityq.redis.keys import Keys

# XAUTOCLAIM, and MAXLEN with LIMIT.
OLDEST_SERVER = (6, 2)

DEADLINE = 5.0  # seconds


async def admit(client: Redis, address: str, keys: Keys, cluster_id: UUID) -> None:
    """Raises UnsafeConfiguration unless this server may be used for that cluster; it may be another one than
    at the last connection, and a missing cluster id is written."""
    await check_server(client, address)
    await claim_namespace(client, address, keys, cluster_id)


async def check_server(client: Redis, address: str) -> None:
    """Raises UnsafeConfiguration for a server that is too old, or that evicts keys to make room.

    `address` (masked) is for the message. Errors of the connection are redis.exceptions.RedisError, and
    TimeoutError.
    """
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.info()
    async with asyncio.timeout(DEADLINE):
        (info,) = await pipeline.execute()
    refuse_server(
        address, version=str(info["redis_version"]), policy=str(info.get("maxmemory_policy", "noeviction"))
    )


def refuse_server(address: str, *, version: str, policy: str) -> None:
    """The decision of `check_server`."""
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        raise UnsafeConfiguration(
            f"The server at {address} speaks Redis {version}.", advice="Use Redis 6.2 or later, or Valkey."
        )
    # Refused without maxmemory too, because it can be set at any time later.
    if policy != "noeviction":
        raise UnsafeConfiguration(
            f"The Redis at {address} evicts keys (maxmemory-policy {policy}): a full one would drop streams.",
            advice="Set maxmemory-policy to noeviction.",
        )


async def claim_namespace(client: Redis, address: str, keys: Keys, cluster_id: UUID) -> None:
    """Write the cluster id where it is missing. Raises UnsafeConfiguration where another one is written."""
    pipeline = client.pipeline(transaction=True)
    pipeline.setnx(keys.cluster(), str(cluster_id))
    pipeline.get(keys.cluster())
    async with asyncio.timeout(DEADLINE):
        _, stored = await pipeline.execute()
    if stored != str(cluster_id).encode():
        raise UnsafeConfiguration(
            f"The Redis at {address} belongs to another cluster with the same namespace: "
            f"{stored.decode(errors='replace')} there, {cluster_id} in Postgres.",
            advice="Use another namespace or another Redis; after restoring Postgres under a new cluster, "
            f"delete the key {keys.cluster().decode()}.",
        )
