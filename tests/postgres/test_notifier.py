import asyncio
from functools import partial

import psycopg

from entityq.postgres.connect import connect
from entityq.postgres.notifier import Notifier
from entityq.postgres.outbox import parse_unpublished, unpublished_channel
from entityq.postgres.session import Session


def test_channel_is_frozen_and_never_too_long() -> None:
    assert unpublished_channel("bank") == "entityq_bank"
    assert unpublished_channel("n" * 55) == "entityq_" + "n" * 55
    assert unpublished_channel("n" * 56) == "entityq_9001bca7ab6f58ac3387ebb981f19372"
    assert len(unpublished_channel("n" * 63)) <= 63


async def test_who_listens_is_told_each_shard(postgres_url: str, namespace: str) -> None:
    session = Session(partial(connect, postgres_url, schema="entityq"))
    notifier = Notifier(session, namespace)
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as listener:
        await listener.execute(f'LISTEN "{unpublished_channel(namespace)}"'.encode())
        task = asyncio.create_task(notifier.run())
        notifier.add([3, 1])
        notifier.add([2_000_000_000])
        heard: set[int] = set()
        async for notification in listener.notifies(timeout=5):
            heard.update(parse_unpublished(notification.payload))
            if heard == {1, 3, 2_000_000_000}:
                break
        notifier.add(range(2_500))
        heard.clear()
        async for notification in listener.notifies(timeout=5):
            heard.update(parse_unpublished(notification.payload))
            if heard == set(range(2_500)):
                break
        assert heard == set(range(2_500))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await session.close()
