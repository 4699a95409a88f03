"""Who is alive, as the locks say."""

from collections.abc import AsyncIterator

import pytest

from entityq.postgres.connect import connect
from entityq.postgres.membership import live_runners
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
