"""Running a reshard in the process of a test."""

from collections.abc import Awaitable, Callable, Sequence

from entityq.address import Shard
from entityq.config import Settings
from entityq.postgres.connect import connect_lease
from entityq.postgres.overview import Change
from entityq.postgres.reshard import Resharding
from entityq.redis.connect import open_client
from entityq.redis.keys import Keys
from entityq.redis.streams import delete_streams


async def reshard(
    settings: Settings,
    change: Change,
    *,
    wait: float = 20.0,
    batch: int = 7,
    before_open: Callable[[], Awaitable[None]] | None = None,
    delete: bool = True,
) -> list[str]:
    """What it said. `before_open` is called when everything is moved; without `delete`, old streams stay."""
    said: list[str] = []

    async def forget_streams(shards: Sequence[Shard]) -> None:
        if before_open is not None:
            await before_open()
        if delete:
            keys = Keys(settings.namespace)
            async with open_client(settings.redis_url or "") as redis:
                await delete_streams(redis, [keys.stream(shard) for shard in shards])

    connection = await connect_lease(settings.postgres_url or "", schema=settings.schema)
    async with connection:
        resharding = Resharding(
            connection,
            schema=settings.schema,
            namespace=settings.namespace,
            say=said.append,
            forget_streams=forget_streams,
            wait=wait,
            batch=batch,
        )
        await resharding.run(change)
    return said
