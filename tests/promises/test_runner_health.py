"""A runner that is alive and does not answer has no shards until it does; nothing is lost meanwhile."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from entityq.errors import UnsafeConfiguration
from entityq.postgres.connect import connect
from entityq.postgres.overview import RunnerOverview, read_overview
from tests.promises.cluster import Cluster, Running, Sending, open_cluster
from tests.promises.journals import Journal, app
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import SCHEMA, SHARDS
from tests.support.waiting import eventually_async

ENTITIES = [f"health-{number}" for number in range(8)]
PATIENCE = 60.0


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncIterator[Cluster]:
    async with open_cluster(app, postgres_url, redis_url, namespace, lease_time=3.0) as cluster:
        yield cluster


async def write(sender: Sending, entity_id: str, stop: asyncio.Event) -> int:
    """One after the other, until told to stop. Returns how many were answered, in order and once each."""
    journal, number = sender.at(Journal, entity_id), 0
    while not stop.is_set():
        number += 1
        reply = await journal.write(str(number))
        assert reply[-2:] == [f"{number}=1", str(number)]
    return number


async def has(running: Running, condition: str, shards: range) -> None:
    async def found() -> bool:
        assert not running.task.done()
        life = running.runner.life
        return life is not None and len(life.shards) in shards

    await eventually_async(found, PATIENCE, f"{running.name} {condition}")


async def state_of(cluster: Cluster, name: str) -> RunnerOverview:
    assert cluster.settings.postgres_url is not None
    async with await connect(cluster.settings.postgres_url, schema=SCHEMA) as connection:
        overview = await read_overview(connection, SCHEMA, cluster.settings.namespace)
    return next(runner for runner in overview.runners if runner.name == name)


async def test_a_runner_that_does_not_answer_pings_gives_its_shards_to_the_others_and_gets_them_back(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    some = range(1, SHARDS)
    sender = await cluster.client()
    async with fault_proxy(redis_url) as proxy:
        first, third = await cluster.start("first"), await cluster.start("third")
        second = await cluster.start("second", redis_url=proxy.url)
        for running in (first, second, third):
            await has(running, "has shards", some)
        incarnation = (await state_of(cluster, "second")).incarnation
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            writers = [tasks.create_task(write(sender, entity_id, stop)) for entity_id in ENTITIES]
            proxy.black_hole()
            await has(second, "has no shards", range(1))
            await cluster.serving(first, third, shards=SHARDS)
            assert not (await state_of(cluster, "second")).healthy
            assert (await state_of(cluster, "first")).healthy
            proxy.heal()
            proxy.cut()
            await has(second, "has shards again", some)
            again = await state_of(cluster, "second")
            stop.set()
        assert all(writer.result() > 0 for writer in writers)
        # The same one all the time: nobody has evicted it.
        assert (again.healthy, again.incarnation) == (True, incarnation)
        await cluster.all_answered()
        await second.stop()
    told = [
        message for message in caplog.messages if message.startswith(("runner.unhealthy", "runner.healthy"))
    ]
    assert [message.split()[:2] for message in told] == [
        ["runner.unhealthy", "name=second"],
        ["runner.healthy_again", "name=second"],
    ]


async def test_where_all_are_unhealthy_all_have_shards(cluster: Cluster) -> None:
    first, second = [await cluster.start(name, runner_health="noop") for name in ("first", "second")]
    mark = b"UPDATE entityq.runner SET healthy = false WHERE name = %s"
    cluster.sql.execute(mark, ["second"])
    await has(second, "has no shards", range(1))
    await cluster.serving(first, shards=SHARDS)
    cluster.sql.execute(mark, ["first"])
    await has(second, "has shards again", range(1, SHARDS))
    await cluster.serving(first, second, shards=SHARDS)


async def test_k8s_outside_of_a_pod_is_refused(cluster: Cluster) -> None:
    with pytest.raises(UnsafeConfiguration, match="runner_health is k8s"):
        await cluster.start("first", runner_health="k8s")
