"""P8 as a user meets it: an app whose clients and runners refuse to start, with one sentence that helps."""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from entityq import Entity, EntityQ, UnsafeConfiguration, message
from entityq.postgres.migrate import OLDEST_SCHEMA
from entityq.redis.connect import open_client as connect_redis
from entityq.redis.keys import Keys
from tests.promises.cluster import Cluster
from tests.promises.journals import Journal
from tests.support.pgbouncer import listen_on_tcp, pgbouncer
from tests.support.servers import SHARDS, Connection, PrivateServers
from tests.support.waiting import eventually_async

Opens = Callable[[EntityQ], AbstractAsyncContextManager[object]]


def open_client(app: EntityQ) -> AbstractAsyncContextManager[object]:
    return app.open_client()


def open_runner(app: EntityQ) -> AbstractAsyncContextManager[object]:
    return app.open_runner(name="refused")


CLIENT_AND_RUNNER = pytest.mark.parametrize("opens", [open_client, open_runner], ids=["client", "runner"])


def new_app(namespace: str, *, shard_group: str = "default", **settings: Any) -> EntityQ:
    app = EntityQ(namespace, embedded=False, **settings)

    @app.entity(shard_group=shard_group)
    class Account(Entity):
        balance: int = 0

        @message
        async def deposit(self, amount: int) -> int:
            self.balance += amount
            return self.balance

    assert Account.at("a").id == "a"
    return app


async def refused(opens: Opens, app: EntityQ) -> str:
    """The sentence. Nothing may be left open, which the fixtures look at."""
    with pytest.raises(UnsafeConfiguration) as caught:
        async with opens(app):
            pytest.fail("it was opened")
    sentence = str(caught.value)
    assert caught.value.advice, f"what is to be done? {sentence}"
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def app(namespace: str, postgres_url: str, redis_url: str) -> EntityQ:
    return new_app(namespace, postgres_url=postgres_url, redis_url=redis_url)


@CLIENT_AND_RUNNER
async def test_the_app_of_these_tests_is_good(opens: Opens, app: EntityQ) -> None:
    async with opens(app):
        pass


@CLIENT_AND_RUNNER
async def test_half_a_pair_of_urls(opens: Opens, namespace: str, postgres_url: str, redis_url: str) -> None:
    sentence = await refused(opens, new_app(namespace, postgres_url=postgres_url))
    assert "postgres_url is set and redis_url is not. Set ENTITYQ_REDIS_URL too." in sentence
    sentence = await refused(opens, new_app(namespace, redis_url=redis_url))
    assert "redis_url is set and postgres_url is not. Set ENTITYQ_POSTGRES_URL too." in sentence
    sentence = await refused(opens, new_app(namespace, redis_url=redis_url, lease_url=postgres_url))
    assert "Set ENTITYQ_POSTGRES_URL too." in sentence


@CLIENT_AND_RUNNER
async def test_no_urls(opens: Opens, namespace: str) -> None:
    sentence = await refused(opens, new_app(namespace))
    assert sentence.startswith("No servers are configured. Set ENTITYQ_POSTGRES_URL and ENTITYQ_REDIS_URL")


@CLIENT_AND_RUNNER
async def test_a_redis_that_evicts(opens: Opens, app: EntityQ, redis_url: str) -> None:
    async with connect_redis(redis_url) as client:
        redis: Any = client
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            sentence = await refused(opens, app)
        finally:
            await redis.config_set("maxmemory-policy", "noeviction")
    assert "evicts keys (maxmemory-policy allkeys-lru)" in sentence
    assert "Set maxmemory-policy to noeviction." in sentence
    async with opens(app):
        pass


@CLIENT_AND_RUNNER
async def test_another_clusters_redis(opens: Opens, app: EntityQ, namespace: str, redis_url: str) -> None:
    key = Keys(namespace).cluster()
    async with connect_redis(redis_url) as client:
        redis: Any = client
        await redis.set(key, "0b8f1bb5-6d5b-4b1f-9e9f-000000000000")
        sentence = await refused(opens, app)
        assert "belongs to another cluster with the same namespace" in sentence
        assert "Use another namespace or another Redis" in sentence
        await redis.delete(key)
        async with opens(app):
            pass
        assert await redis.get(key), "the cluster id was not written again"


async def test_a_redis_that_became_another_clusters_is_not_read(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    sender = await cluster.client()
    runner = await cluster.start()
    await cluster.serving(runner, shards=SHARDS)
    redis: Any = cluster.redis
    await redis.set(cluster.keys.cluster(), "0b8f1bb5-6d5b-4b1f-9e9f-000000000000")
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def refused() -> bool:
        return "redis.refused: The Redis at" in caplog.text

    await eventually_async(refused, what="the refusal in the log")
    # The truth is in Postgres.
    assert await sender.at(Journal, "refused").append("a") == 1


@CLIENT_AND_RUNNER
async def test_no_schema(opens: Opens, namespace: str, empty_postgres_url: str, redis_url: str) -> None:
    app = new_app(namespace, postgres_url=empty_postgres_url, redis_url=redis_url)
    assert "no entityq tables" in (sentence := await refused(opens, app))
    assert sentence.endswith("Run `entityq migrate`.")


@CLIENT_AND_RUNNER
async def test_an_older_schema(opens: Opens, app: EntityQ, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as owner:
        owner.execute("DELETE FROM entityq.migration")
    sentence = await refused(opens, app)
    assert f"is at migration 0; this code needs {OLDEST_SCHEMA} or later. Run `entityq migrate`." in sentence


@CLIENT_AND_RUNNER
async def test_a_newer_schema(opens: Opens, app: EntityQ, postgres_url: str) -> None:
    insert = (
        "INSERT INTO entityq.migration (number, name, checksum, oldest_code) VALUES (%s, 'later', '', %s)"
    )
    with psycopg.connect(postgres_url) as owner:
        owner.execute(insert, [98, 1])
    async with opens(app):
        pass  # newer, and says that this code can run on it
    with psycopg.connect(postgres_url) as owner:
        owner.execute(insert, [99, 99])
    sentence = await refused(opens, app)
    assert "is at migration 99 and needs code of migration 99 or later" in sentence
    assert sentence.endswith("Install a newer entityq.")


@CLIENT_AND_RUNNER
async def test_an_unknown_namespace(opens: Opens, postgres_url: str, redis_url: str) -> None:
    sentence = await refused(opens, new_app("nobody", postgres_url=postgres_url, redis_url=redis_url))
    assert "no cluster with the namespace nobody" in sentence


@CLIENT_AND_RUNNER
async def test_a_type_of_another_shard_group(
    opens: Opens, app: EntityQ, namespace: str, postgres_url: str, redis_url: str
) -> None:
    async with app.open_client():
        pass
    moved = new_app(namespace, shard_group="slow", postgres_url=postgres_url, redis_url=redis_url)
    sentence = await refused(opens, moved)
    assert "Entity type Account belongs to shard group default in the cluster" in sentence
    assert 'Write shard_group="default"' in sentence
    assert "`entityq reshard --type Account --group slow`" in sentence


async def test_a_shard_group_that_the_cluster_does_not_have(
    namespace: str, postgres_url: str, redis_url: str
) -> None:
    app = new_app(namespace, groups=("mial",), postgres_url=postgres_url, redis_url=redis_url)
    sentence = await refused(open_runner, app)
    assert "has no shard group mial" in sentence
    assert "It has default" in sentence


@CLIENT_AND_RUNNER
async def test_another_format(opens: Opens, app: EntityQ, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as owner:
        owner.execute("UPDATE entityq.cluster SET format_version = 2")
    sentence = await refused(opens, app)
    assert "stores format 2; this code knows 1" in sentence
    assert "Install the version of entityq that the other runners have." in sentence


async def test_missing_rights(
    app: EntityQ, namespace: str, server: Connection, postgres_url: str, redis_url: str
) -> None:
    """A role that the migrations' owner has given its rights to, but for one function and one table."""
    async with app.open_client():
        pass
    role = f"limited_{secrets.token_hex(4)}"
    server.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        with psycopg.connect(postgres_url, autocommit=True) as owner:
            for right in (
                "USAGE ON SCHEMA",
                "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA",
                "USAGE, SELECT ON ALL SEQUENCES IN SCHEMA",
                "EXECUTE ON ALL FUNCTIONS IN SCHEMA",
            ):
                owner.execute(f"GRANT {right} entityq TO {role}".encode())
            owner.execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA entityq FROM public")
        limited = new_app(namespace, postgres_url=as_user(postgres_url, role), redis_url=redis_url)
        async with open_runner(limited):
            pass
        with psycopg.connect(postgres_url, autocommit=True) as owner:
            owner.execute(f"REVOKE EXECUTE ON FUNCTION entityq.runner_ended FROM {role}".encode())
            owner.execute(f"REVOKE UPDATE ON entityq.shard_group FROM {role}".encode())
        sentence = await refused(open_runner, limited)
        assert "lacks rights in schema entityq: EXECUTE on runner_ended, UPDATE on shard_group." in sentence
        assert "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA entityq to it." in sentence
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as owner:
            owner.execute(f"DROP OWNED BY {role}".encode())
        server.execute(f"DROP ROLE {role}".encode())


def as_user(url: str, user: str) -> str:
    """The same database as another user."""
    return url.replace("//postgres@", f"//{user}@", 1)


@CLIENT_AND_RUNNER
async def test_synchronous_commit_is_off(opens: Opens, app: EntityQ, postgres_url: str) -> None:
    name = str(conninfo_to_dict(postgres_url)["dbname"])
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
    assert "synchronous_commit is off: accepted requests could be lost" in await refused(opens, app)


@pytest.fixture
def tcp_url(private_servers: PrivateServers) -> str:
    return listen_on_tcp(private_servers)


@pytest.fixture
def pooler(tcp_url: str) -> Iterator[str]:
    """A PgBouncer in transaction mode in front of the private Postgres."""
    with (
        tempfile.TemporaryDirectory(prefix="entityq-", dir="/tmp") as name,
        pgbouncer(tcp_url, Path(name), mode="transaction") as url,
    ):
        yield url


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")
@CLIENT_AND_RUNNER
async def test_a_transaction_pooler(
    opens: Opens, private_servers: PrivateServers, namespace: str, pooler: str
) -> None:
    app = new_app(namespace, postgres_url=pooler, redis_url=private_servers.redis_url)
    sentence = await refused(opens, app)
    assert "transaction pooler" in sentence
    assert "Use the server's own address, or a pooler in session mode." in sentence


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")
async def test_a_transaction_pooler_for_the_leases(
    private_servers: PrivateServers, namespace: str, tcp_url: str, pooler: str
) -> None:
    app = new_app(namespace, postgres_url=tcp_url, lease_url=pooler, redis_url=private_servers.redis_url)
    sentence = await refused(open_runner, app)
    assert "transaction pooler" in sentence
    assert "(lease_url)" in sentence
