"""Replies that no commit has checked: sent by a runner that certainly holds its shards, or not at all."""

import pytest

from entityq import SendTimeout
from tests.support.live import LiveCluster
from tests.support.probe import Probe
from tests.support.servers import connected
from tests.support.waiting import eventually_async

LEASE_TIME = 1.5


async def test_a_runner_that_may_have_been_evicted_sends_no_volatile_reply(
    cluster: LiveCluster, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app(lease_time=LEASE_TIME)
    probe = cluster.actor(app, Probe).at("p-1")
    await cluster.start(app)

    async def logged(what: str) -> None:
        async def found() -> bool:
            return what in caplog.text

        await eventually_async(found, 10.0, what)

    cluster.stage.close("gate")
    receipt = await probe.hold.options(timeout=6.0).send("text", "gate")
    await cluster.stage.saw("hold p-1 text")
    with connected(postgres_url) as sql, sql.transaction():
        # Its heartbeats wait for this row; nobody else is there who could evict it.
        sql.execute("SELECT 1 FROM entityq.runner FOR UPDATE")
        await logged("heart.was_silent")
        cluster.stage.open("gate")
        await logged("reply.withheld Probe/p-1 hold")
    with pytest.raises(SendTimeout):
        await receipt
    assert await probe.peek() == []
