"""Redis in any state costs latency only: nothing is lost, doubled or out of order, and it is used again."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from entityq.address import Shard
from entityq.redis.keys import CONSUMER_GROUP
from tests.promises.cluster import Cluster
from tests.promises.journals import GATES, Journal
from tests.promises.redis_outage import outage, second_server
from tests.support.places import shard_of
from tests.support.servers import SHARDS, PrivateServers, flush
from tests.support.waiting import eventually_async

Servers = PrivateServers


async def test_flushed(private_servers: Servers, namespace: str) -> None:
    async with outage(private_servers, namespace) as scene:
        for _ in range(5):
            flush(private_servers.redis_url)
            await scene.load.goes_on(10)


async def test_killed_and_restarted_empty(
    private_servers: Servers, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with outage(private_servers, namespace) as scene:
        private_servers.valkey.kill()
        await scene.load.goes_on(100)
        await scene.volatile_is_refused()
        await asyncio.to_thread(private_servers.valkey.start)
    lines = Counter(message.split(":")[0] for message in caplog.messages)
    assert lines["redis.read_failed"] == 1
    # Of the client and of the runner.
    assert 1 <= lines["redis.publish_failed"] <= 2
    assert lines["redis.reply_failed"] <= 1
    assert lines["redis.acknowledge_failed"] <= 1


async def test_restarted_with_stale_data(private_servers: Servers, namespace: str) -> None:
    async with outage(private_servers, namespace) as scene:
        await scene.redis("SAVE")
        await scene.load.goes_on()
        private_servers.valkey.kill()
        await asyncio.to_thread(private_servers.valkey.start)


@pytest.mark.parametrize("delay", [0.05, 0.2])
async def test_slow(private_servers: Servers, namespace: str, delay: float) -> None:
    async with outage(private_servers, namespace) as scene:
        scene.proxy.delay(delay)
        await scene.load.goes_on()
        scene.proxy.heal()


async def test_throttled(private_servers: Servers, namespace: str) -> None:
    async with outage(private_servers, namespace) as scene:
        scene.proxy.throttle(2_000)
        await scene.load.goes_on()
        scene.proxy.heal()


async def test_frozen(private_servers: Servers, namespace: str) -> None:
    async with outage(private_servers, namespace) as scene:
        private_servers.valkey.freeze()
        await scene.load.goes_on()
        await scene.volatile_is_refused()
        private_servers.valkey.thaw()


@pytest.mark.parametrize("direction", ["both", "to server", "to client"])
async def test_unreachable_for_a_while(private_servers: Servers, namespace: str, direction: str) -> None:
    async with outage(private_servers, namespace) as scene:
        scene.proxy.black_hole(to_server=direction != "to client", to_client=direction != "to server")
        await scene.load.goes_on()
        await scene.volatile_is_refused()
        scene.proxy.heal()


@pytest.mark.parametrize("cut", [True, False])
async def test_connections_are_lost_without_a_word(
    private_servers: Servers, namespace: str, cut: bool
) -> None:
    """Half-open for good: the old ones; after the cut, those that are being opened."""
    async with outage(private_servers, namespace) as scene:
        scene.proxy.black_hole()
        await scene.load.goes_on(10)
        if cut:
            scene.proxy.cut()
            await scene.load.goes_on(10)
        scene.proxy.heal(existing=False)


async def test_short_outages_one_after_the_other(private_servers: Servers, namespace: str) -> None:
    async with outage(private_servers, namespace) as scene:
        for _ in range(4):
            scene.proxy.refuse()
            scene.proxy.cut()
            await scene.load.goes_on(8)
            scene.proxy.heal()
            await scene.load.goes_on(8)
            scene.proxy.cut()


async def test_full(private_servers: Servers, namespace: str) -> None:
    """OOM: nothing is added, no group is made; the rest works."""
    async with outage(private_servers, namespace) as scene:
        await scene.config("maxmemory", 1)
        await scene.load.goes_on()
        await scene.volatile_is_refused()
        await scene.config("maxmemory", 0)


async def test_full_and_without_groups(private_servers: Servers, namespace: str) -> None:
    async with outage(private_servers, namespace) as scene:
        await scene.config("maxmemory", 1)
        flush(private_servers.redis_url)
        await scene.load.goes_on()
        await scene.config("maxmemory", 0)


async def test_full_when_a_runner_takes_over(private_servers: Servers, namespace: str) -> None:
    async with outage(private_servers, namespace) as scene:
        await scene.config("maxmemory", 1)
        flush(private_servers.redis_url)
        await scene.cluster.running[0].abort()
        await scene.cluster.start("second")
        await scene.load.goes_on()
        await scene.config("maxmemory", 0)


async def test_refuses_writes_because_it_cannot_save(private_servers: Servers, namespace: str) -> None:
    """MISCONF."""
    async with outage(private_servers, namespace) as scene:
        blocker = Path((await scene.redis("CONFIG", "GET", "dir"))[1].decode()) / "dump.rdb"
        blocker.mkdir()
        await scene.config("save", "3600 1")
        await scene.redis("BGSAVE")
        await scene.info_says("rdb_last_bgsave_status:err")
        await scene.load.goes_on()
        await scene.volatile_is_refused()
        await scene.config("save", "")


async def test_becomes_a_replica(private_servers: Servers, namespace: str, tmp_path: Path) -> None:
    """READONLY, and LOADING for a moment."""
    async with second_server(tmp_path) as second, outage(private_servers, namespace) as scene:
        await scene.redis("REPLICAOF", "127.0.0.1", second.port)
        await scene.load.goes_on()
        await scene.volatile_is_refused()
        await scene.redis("REPLICAOF", "NO", "ONE")


async def test_fails_over_to_a_replica_that_lags(
    private_servers: Servers, namespace: str, tmp_path: Path
) -> None:
    """The old one goes on as the new one's replica: who stays with it can only read."""
    async with second_server(tmp_path) as second, outage(private_servers, namespace) as scene:
        await second.follow(scene)
        await second.redis("REPLICAOF", "NO", "ONE")
        await scene.load.goes_on()
        await scene.redis("REPLICAOF", "127.0.0.1", second.port)
        scene.fails_over(second)
        await scene.load.goes_on()
        await second.is_used()


async def test_loads_its_data(private_servers: Servers, namespace: str, tmp_path: Path) -> None:
    async with second_server(tmp_path) as second, outage(private_servers, namespace) as scene:
        for number in range(200):
            await second.redis("SET", f"key-{number}", "x" * 10_000)
        await scene.config("repl-diskless-load", "disabled")
        await scene.config("key-load-delay", 20_000)
        await scene.config("loading-process-events-interval-bytes", 1024)
        await scene.redis("REPLICAOF", "127.0.0.1", second.port)
        await scene.info_says("loading:1")
        await scene.load.goes_on()
        await scene.config("key-load-delay", 0)
        await scene.in_the_end("REPLICAOF", "NO", "ONE")


async def test_has_no_room_for_connections(private_servers: Servers, namespace: str) -> None:
    """maxclients."""
    async with outage(private_servers, namespace) as scene:
        # Its own minimum is 1: whoever is connected stays, nobody else comes.
        await scene.config("maxclients", 1)
        scene.proxy.cut()
        await scene.load.goes_on()
        await scene.config("maxclients", 10_000)


@pytest.mark.parametrize("rule", ["-@all +config +acl", "-xadd", "-publish", "-xreadgroup", "-xack -xdel"])
async def test_forbids_commands(private_servers: Servers, namespace: str, rule: str) -> None:
    """NOPERM after a change of the ACL."""
    async with outage(private_servers, namespace) as scene:
        await scene.redis("ACL", "SETUSER", "admin", "on", "nopass", "+@all", "~*", "&*")
        await scene.redis("AUTH", "admin", "x")
        await scene.redis("ACL", "SETUSER", "default", *rule.split())
        await scene.load.goes_on()
        await scene.redis("ACL", "SETUSER", "default", "+@all")


async def test_wants_a_password(private_servers: Servers, namespace: str) -> None:
    """NOAUTH."""
    async with outage(private_servers, namespace) as scene:
        await scene.redis("ACL", "SETUSER", "admin", "on", "nopass", "+@all", "~*", "&*")
        await scene.redis("AUTH", "admin", "x")
        await scene.config("requirepass", "secret")
        await scene.load.goes_on()
        await scene.redis("ACL", "SETUSER", "default", "nopass")


async def test_kills_connections(private_servers: Servers, namespace: str) -> None:
    """In the middle of whatever they do."""
    async with outage(private_servers, namespace) as scene:
        for kind in ("normal", "pubsub") * 10:
            await scene.redis("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await scene.load.goes_on(3)


@pytest.mark.parametrize("loss", ["DEL", "XGROUP DESTROY", "XGROUP DELCONSUMER", "XTRIM"])
async def test_loses_a_part(private_servers: Servers, namespace: str, loss: str) -> None:
    # What was trimmed away leaves no trace but a gap, when there is a next one: it is found by a sweep.
    async with outage(private_servers, namespace, sweep_interval=0.5) as scene:
        consumer = str(next(iter(scene.cluster.running[0].life.shards)).tenure.incarnation)
        for _ in range(5):
            for stream in await scene.redis("KEYS", "eq:*:stream:*"):
                commands = {
                    "DEL": ("DEL", stream),
                    "XGROUP DESTROY": ("XGROUP", "DESTROY", stream, CONSUMER_GROUP),
                    "XGROUP DELCONSUMER": ("XGROUP", "DELCONSUMER", stream, CONSUMER_GROUP, consumer),
                    "XTRIM": ("XTRIM", stream, "MAXLEN", 0),
                }
                await scene.redis(*commands[loss])
            await scene.load.goes_on(10)


async def test_what_the_reader_got_and_never_saw(private_servers: Servers, namespace: str) -> None:
    """The answer to XREADGROUP is lost on the way: for Redis they are delivered."""
    async with outage(private_servers, namespace) as scene:
        for _ in range(5):
            scene.proxy.black_hole(to_server=False)
            await scene.load.goes_on(5)
            scene.proxy.cut()
            scene.proxy.heal()
            await scene.recovered()


async def test_what_redis_took_and_nobody_read_is_not_left_to_a_late_sweep(
    private_cluster: Cluster, private_servers: Servers
) -> None:
    cluster = private_cluster
    cluster.app_settings(sweep_interval=3600.0)
    sender = await cluster.client()
    # With a prefetch of 1 and a held turn, it reads no stream until the gate is opened.
    runner = await cluster.start(prefetch=1)
    await cluster.serving(runner, shards=SHARDS)
    held = await sender.at(Journal, "unread").held.send("first")
    await GATES["unread"].wait_for_handler()
    receipts = [await sender.at(Journal, "unread").append.send(str(number)) for number in range(5)]
    redis: Any = cluster.redis
    stream = cluster.keys.stream(Shard("default", shard_of("unread")))

    async def published() -> bool:
        return int(await redis.xlen(stream)) == 6

    await eventually_async(published)
    private_servers.valkey.kill()
    GATES["unread"].opened.set()
    assert await held == 1
    assert [await receipt for receipt in receipts] == [2, 3, 4, 5, 6]
