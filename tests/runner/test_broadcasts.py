"""What waits to be delivered is bounded; everything else is tested on clusters (tests/behaviours)."""

import pytest

from entityq.redis.broadcasts import broadcast_message
from entityq.redis.connect import open_client, open_connection
from entityq.redis.control import ControlChannel, ControlMessage
from entityq.runner.broadcasts import MAX_WAITING, Broadcasts
from entityq.runner.prefetch import Prefetch
from entityq.runner.residents import Residents
from entityq.runner.shard_table import ShardTable

ME = 7


async def test_broadcasts_that_wait_are_bounded_in_bytes(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_client(redis_url) as redis:
        broadcasts = Broadcasts(
            ME,
            ControlChannel(redis, open_connection(redis_url), b"control"),
            {},
            residents=Residents(10),
            shards=ShardTable(),
            prefetch=Prefetch(10),
            announce=lambda client, request_id, reply: None,
            max_payload=1024,
        )
        half = broadcast_message(bytes(MAX_WAITING // 2), {ME: 1})
        for each in (ControlMessage("ping"), broadcast_message(bytes(MAX_WAITING), {8: 1}), half, half):
            broadcasts.hear(each)
        assert "broadcast.dropped" not in caplog.text
        broadcasts.hear(broadcast_message(b"x", {ME: 1}))
        assert "broadcast.dropped" in caplog.text
