import socket
from collections.abc import AsyncGenerator, Iterator

import pytest

from tests.promises.cluster import Cluster, open_cluster
from tests.promises.journals import app
from tests.support.servers import PrivateServers


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncGenerator[Cluster]:
    async with open_cluster(app, postgres_url, redis_url, namespace) as cluster:
        yield cluster


@pytest.fixture
async def private_cluster(private_servers: PrivateServers, namespace: str) -> AsyncGenerator[Cluster]:
    """On servers that the test may kill and freeze."""
    urls = private_servers.postgres_url, private_servers.redis_url
    async with open_cluster(app, *urls, namespace) as cluster:
        yield cluster


@pytest.fixture
def silent_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Takes connections and answers nothing."""
    path = tmp_path_factory.mktemp("silent") / "redis.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(100)
        yield f"unix://{path}"
