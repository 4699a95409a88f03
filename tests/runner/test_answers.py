"""Replies that no commit has checked: sent by a runner that certainly holds its shards, or not at all."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

import psycopg
import pytest

from entityq import Receipt
from entityq.runner.answers import LOOK_AGAIN
from tests.support.live import LiveCluster
from tests.support.probe import Probe
from tests.support.servers import connected
from tests.support.waiting import eventually_async

LEASE_TIME = 1.5


async def logged(caplog: pytest.LogCaptureFixture, what: str) -> None:
    async def found() -> bool:
        return what in caplog.text

    await eventually_async(found, 10.0, what)


@contextmanager
def heartbeats_wait(url: str) -> Generator[psycopg.Connection]:
    """For this row; nobody else is there who could evict the runner."""
    with connected(url) as sql, sql.transaction():
        sql.execute("SELECT 1 FROM entityq.runner FOR UPDATE")
        yield sql


async def held(cluster: LiveCluster) -> Receipt[str]:
    app = cluster.app(lease_time=LEASE_TIME)
    probe = cluster.actor(app, Probe).at("p-1")
    await cluster.start(app)
    cluster.stage.close("gate")
    receipt = await probe.hold.options(timeout=30.0).send("text", "gate")
    await cluster.stage.saw("hold p-1 text")
    return receipt


async def test_a_runner_that_may_have_been_evicted_sends_no_volatile_reply(
    cluster: LiveCluster, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it lose it: once it is certain that the shard was its own all the time, the caller gets it."""
    receipt = await held(cluster)
    with heartbeats_wait(postgres_url):
        await logged(caplog, "heart.was_silent")
        cluster.stage.open("gate")
        await logged(caplog, "reply.withheld Probe/p-1 hold")
        waiting = asyncio.ensure_future(receipt)
        done, _ = await asyncio.wait([waiting], timeout=3 * LOOK_AGAIN)
        assert not done
    assert await waiting == "text"
    assert cluster.stage.journal == ["hold p-1 text"]


async def test_a_withheld_reply_of_a_runner_that_was_evicted_comes_from_the_next_owner(
    cluster: LiveCluster, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    receipt = await held(cluster)
    with heartbeats_wait(postgres_url) as sql:
        await logged(caplog, "heart.was_silent")
        cluster.stage.open("gate")
        await logged(caplog, "reply.withheld Probe/p-1 hold")
        sql.execute("SELECT pg_terminate_backend(pid, 10000) FROM entityq.runner")
    assert await receipt == "text"
    assert cluster.stage.journal == ["hold p-1 text"] * 2
