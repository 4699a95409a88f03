"""The health that peers record (STO-18)."""

from collections.abc import AsyncIterator

import pytest

from entityq.postgres.connect import Connection, connect, open_pool
from entityq.postgres.health import RunnerHealth
from entityq.postgres.membership import live_runners
from tests.support.leases import Cluster, open_cluster
from tests.support.servers import SCHEMA


@pytest.fixture
async def cluster(postgres_url: str, namespace: str) -> AsyncIterator[Cluster]:
    async with open_cluster(postgres_url, namespace) as opened:
        yield opened


@pytest.fixture
async def health(cluster: Cluster) -> AsyncIterator[RunnerHealth]:
    async with open_pool(cluster.url, schema=SCHEMA, size=1) as pool:
        yield RunnerHealth(pool)


@pytest.fixture
async def connection(cluster: Cluster) -> AsyncIterator[Connection]:
    async with await connect(cluster.url, schema=SCHEMA) as opened:
        yield opened


async def test_sto_18_health_is_true_at_first_and_can_be_set(
    cluster: Cluster, namespace: str, health: RunnerHealth, connection: Connection
) -> None:
    first, second = await cluster.session(name="first"), await cluster.session(name="second")

    async def healthy() -> list[bool]:
        return [member.healthy for member in await live_runners(connection, SCHEMA, namespace)]

    assert await healthy() == [True, True]
    assert await health.record(second.incarnation, healthy=False)
    assert await healthy() == [True, False]
    assert [member.healthy for member in await first.members()] == [True, False]
    assert await health.record(second.incarnation, healthy=True)
    assert await healthy() == [True, True]


async def test_only_the_first_to_record_something_changed_it(cluster: Cluster, health: RunnerHealth) -> None:
    session = await cluster.session()
    assert not await health.record(session.incarnation, healthy=True)
    assert await health.record(session.incarnation, healthy=False)
    assert not await health.record(session.incarnation, healthy=False)
    await session.close()
    assert not await health.record(session.incarnation, healthy=True)


async def test_a_runner_of_a_release_without_heartbeats_is_not_judged(
    cluster: Cluster, health: RunnerHealth, connection: Connection
) -> None:
    session = await cluster.session()
    await connection.execute("UPDATE runner SET heartbeat = NULL")
    assert not await health.record(session.incarnation, healthy=False)


async def test_a_new_incarnation_begins_healthy(
    cluster: Cluster, namespace: str, health: RunnerHealth, connection: Connection
) -> None:
    old = await cluster.session()
    await health.record(old.incarnation, healthy=False)
    await old.close()
    await cluster.session(ghost=old.backend)
    (member,) = await live_runners(connection, SCHEMA, namespace)
    assert member.healthy
