from collections.abc import AsyncIterator

import pytest

from entityq import EntityQ
from tests.support.live import LiveCluster, live_cluster


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncIterator[LiveCluster]:
    """A sweep would find in ten minutes what no notification has told of."""
    async with live_cluster(postgres_url, redis_url, namespace) as live:
        yield live


@pytest.fixture
def app(cluster: LiveCluster) -> EntityQ:
    return cluster.app()
