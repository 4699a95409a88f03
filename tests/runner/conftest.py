from collections.abc import AsyncIterator

import pytest

from tests.support.live import LiveCluster, live_cluster


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncIterator[LiveCluster]:
    """No runner yet; whatever the test starts is stopped in order at its end."""
    async with live_cluster(postgres_url, redis_url, namespace) as live:
        yield live
