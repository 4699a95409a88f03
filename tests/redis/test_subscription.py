import asyncio
from pathlib import Path
from typing import Any

import pytest

from entityq.redis import subscription
from entityq.redis.connect import open_client, open_connection
from tests.support.servers import PrivateServers
from tests.support.waiting import eventually_async


async def test_a_redis_that_cannot_save_and_refuses_even_ping_is_there(
    private_servers: PrivateServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "SILENCE", 0.1)
    heard: asyncio.Queue[Any] = asyncio.Queue()
    async with open_client(private_servers.redis_url) as client:
        redis: Any = client
        directory = Path((await redis.config_get("dir"))["dir"])
        (directory / "dump.rdb").mkdir()
        await redis.set("a", "b")
        await redis.config_set("save", "3600 1")
        await redis.bgsave()
        connection = open_connection(private_servers.redis_url, name="listener")
        listening = asyncio.create_task(subscription.listen(connection, b"c", heard.put_nowait))
        try:
            assert (await heard.get())[0] == b"subscribe"

            async def refused() -> bool:
                return int((await redis.info("errorstats")).get("errorstat_MISCONF", {}).get("count", 0)) >= 3

            await eventually_async(refused, 10.0, "three refused pings")
            assert not listening.done()
            await redis.publish("c", "x")
            assert (await heard.get())[2] == b"x"
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await connection.disconnect()
