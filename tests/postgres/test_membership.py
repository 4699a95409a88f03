"""Who is alive, as the locks say."""

from collections.abc import AsyncIterator

import pytest

from entityq.postgres.connect import connect
from entityq.postgres.membership import live_runners, runner_class
from tests.support.leases import Cluster, open_cluster
from tests.support.servers import SCHEMA


@pytest.fixture
async def cluster(postgres_url: str, namespace: str) -> AsyncIterator[Cluster]:
    async with open_cluster(postgres_url, namespace) as opened:
        yield opened


async def test_members_are_read_over_any_connection(cluster: Cluster, namespace: str) -> None:
    session = await cluster.session(types=["Account", "Unregistered"])
    async with await connect(cluster.url, schema=SCHEMA) as connection:
        (member,) = await live_runners(connection, SCHEMA, namespace)
    assert member.incarnation == session.incarnation
    assert member.types == {"Account", "Unregistered"}
    assert member.known_types("default") == 1
    assert member.known_types("other") == 0


async def test_a_row_is_a_claim_that_only_its_own_lock_makes_true(cluster: Cluster, namespace: str) -> None:
    """Not a dead runner's row, whose number another one has now, and not a lock that is only shared."""
    session = await cluster.session()
    async with await connect(cluster.url, schema=SCHEMA) as connection:
        await connection.execute(
            "INSERT INTO runner SELECT 0, namespace, number, 'dead', pid + 1, backend_start, groups, types,"
            " weight, draining, joined_at FROM runner"
        )
        await connection.execute("SELECT pg_advisory_lock_shared(%s, 700)", [runner_class(SCHEMA, namespace)])
        await connection.execute(
            "INSERT INTO runner SELECT -1, namespace, 700, 'shares', pg_backend_pid(), backend_start, groups,"
            " types, weight, draining, joined_at FROM runner WHERE incarnation = 0"
        )
        live = await live_runners(connection, SCHEMA, namespace)
        assert [member.incarnation for member in live] == [session.incarnation]
        assert await live_runners(connection, "other", namespace) == ()
