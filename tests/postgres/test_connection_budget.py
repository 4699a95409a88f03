"""The warning before Postgres has no session left."""

from contextlib import ExitStack

import pytest
from psycopg.conninfo import make_conninfo

from entityq.postgres.connect import connect
from entityq.postgres.connection_budget import of_runner, warn_when_short, warning
from tests.promises.cluster import open_cluster
from tests.promises.journals import app
from tests.support.servers import SCHEMA, SHARDS, PrivateServers, connected
from tests.support.waiting import eventually_async

# The reads of a runner's client begin when somebody waits for a reply.
LAZY = 1


@pytest.mark.parametrize(
    ("in_use", "allowed", "warned"), [(0, 97, False), (69, 97, False), (70, 97, True), (0, 9, True)]
)
def test_from_80_percent_on_with_the_numbers_and_what_to_do(in_use: int, allowed: int, warned: bool) -> None:
    text = warning(in_use=in_use, allowed=allowed, pool_size=4)
    assert bool(text) is warned
    if warned:
        assert f"{in_use} of {allowed} sessions" in text
        assert "up to 8." in text
        assert "ENTITYQ_POOL_SIZE (4)" in text


async def test_sessions_are_counted_also_by_a_role_that_may_not_see_them(
    private_servers: PrivateServers, caplog: pytest.LogCaptureFixture, namespace: str
) -> None:
    url = private_servers.postgres_url
    with connected(url) as connection:
        connection.execute("ALTER SYSTEM SET max_connections = 30")
        connection.execute("CREATE ROLE guest LOGIN")
    private_servers.postgres.restart()
    with ExitStack() as others:
        for _ in range(13):
            others.enter_context(connected(url))
        for mine in (url, make_conninfo(url, user="guest")):
            async with await connect(mine, schema=SCHEMA) as connection:
                # 27 without the superusers' 3: with these 13 and 8 of this runner it is 78 %.
                await warn_when_short(connection, 4)
                assert caplog.messages == []
                with connected(url):
                    await warn_when_short(connection, 4)
                assert "14 of 27 sessions" in caplog.messages[0]
                caplog.clear()
        async with open_cluster(app, url, private_servers.redis_url, namespace) as cluster:
            await cluster.start()
            assert any(message.startswith("runner.few_sessions") for message in caplog.messages)


async def test_a_runner_opens_no_more_than_its_budget(
    postgres_url: str, redis_url: str, namespace: str
) -> None:
    async with open_cluster(app, postgres_url, redis_url, namespace, pool_size=1) as cluster:
        runner = await cluster.start()
        await cluster.serving(runner, shards=SHARDS)

        def opened() -> int:
            return cluster.count(
                b"SELECT count(*) FROM pg_stat_activity"
                b" WHERE datname = current_database() AND application_name LIKE 'entityq%'"
            )

        async def all_open() -> bool:
            return opened() == of_runner(1) - LAZY

        await eventually_async(all_open, 10, "all sessions")
