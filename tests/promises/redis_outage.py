"""Requests of a client and of turns that go on while Redis is in a bad state, and what must be true of them."""

import asyncio
import logging
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from entityq import Receipt
from entityq.address import Shard
from entityq.embedded.valkey import ValkeyServer
from entityq.errors import SendTimeout
from entityq.redis.connect import open_client
from tests.promises.cluster import Cluster, Sending, open_cluster
from tests.promises.journals import Journal, app
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.places import shard_of
from tests.support.servers import SHARDS, PrivateServers
from tests.support.waiting import eventually_async

log = logging.getLogger(__name__)

ENTITIES = 6
# Seconds. No sweep helps: it comes once an hour.
PATIENCE = 5.0


class Load:
    """Senders that send one request after the other to their entity, and turns that send to another one."""

    def __init__(self, sender: Sending) -> None:
        self.slowest = 0.0
        self.answered = 0
        self._sender = sender
        self._stopping = False
        self._receipts: dict[str, list[Receipt[int]]] = {}
        self._passed_on: dict[str, list[str]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for number in range(ENTITIES):
            self._tasks.append(asyncio.create_task(self._send(f"sent-{number}"), name="load"))
            self._tasks.append(asyncio.create_task(self._pass_on(f"turn-{number}"), name="load of turns"))

    async def _send(self, name: str) -> None:
        journal, receipts = self._sender.at(Journal, name), self._receipts.setdefault(name, [])
        while not self._stopping:
            # Two that nobody waits for, and one that is waited for.
            for _ in range(3):
                receipts.append(await journal.append.send(str(len(receipts))))
            await self._timed(receipts[-1])

    async def _pass_on(self, name: str) -> None:
        source, texts = self._sender.at(Journal, name), self._passed_on.setdefault(name, [])
        while not self._stopping:
            new = [str(len(texts)), str(len(texts) + 1)]
            texts += new
            await self._timed(await source.pass_on.send(f"{name}-target", new))

    async def _timed(self, receipt: Receipt[Any]) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        async with asyncio.timeout(PATIENCE):
            await receipt
        self.slowest = max(self.slowest, clock() - began)
        self.answered += 1

    async def goes_on(self, count: int = 30, seconds: float = 20.0) -> None:
        """So many requests are answered from now on."""
        wanted = self.answered + count

        async def reached() -> bool:
            self.check()
            return self.answered >= wanted

        await eventually_async(reached, seconds, f"{count} more answers (slowest: {self.slowest:.2f} s)")

    def check(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def end(self) -> None:
        """Every accepted request is answered, applied once, and in the order of its sender."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        for name, receipts in self._receipts.items():
            async with asyncio.timeout(PATIENCE):
                replies = [await receipt for receipt in receipts]
            assert replies == list(range(1, len(receipts) + 1))
            assert await self._stored(name) == [str(number) for number in range(len(receipts))]
        for name, texts in self._passed_on.items():
            await self._require_stored(f"{name}-target", texts)

    async def _require_stored(self, name: str, texts: list[str]) -> None:
        async def stored_all() -> bool:
            stored = await self._stored(name)
            assert stored == texts[: len(stored)]
            return stored == texts

        await eventually_async(stored_all)

    async def _stored(self, name: str) -> list[str]:
        return await self._sender.at(Journal, name).read.options(timeout=PATIENCE)()

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Outage:
    """A cluster whose Redis is behind `proxy`; `direct` is a client beside it."""

    def __init__(
        self,
        proxy: FaultProxy,
        direct: Redis,
        cluster: Cluster,
        sender: Sending,
    ) -> None:
        self.proxy = proxy
        self.cluster = cluster
        self.sender = sender
        self.load = Load(sender)
        self._direct: Any = direct
        self._direct.response_callbacks.clear()  # replies as they come

    async def redis(self, *command: object) -> Any:
        """On the server that is in use."""
        return await self._direct.execute_command(*command)

    async def config(self, name: str, value: object) -> None:
        await self.redis("CONFIG", "SET", name, value)

    def stream_of(self, entity_id: str) -> bytes:
        return self.cluster.keys.stream(Shard("default", shard_of(entity_id)))

    async def in_the_end(self, *command: object) -> None:
        """Tried until it is not refused."""

        async def done() -> bool:
            try:
                await self.redis(*command)
            except RedisError:
                return False
            return True

        await eventually_async(done, 20.0, str(command))

    def fails_over(self, second: "SecondServer") -> None:
        """New connections, ours included, go to the other server."""
        self.proxy.redirect(second.url)
        self._direct = second.client

    async def info_says(self, line: str) -> None:
        async def said() -> bool:
            return line.encode() in await self.redis("INFO")

        await eventually_async(said, 10.0, line)

    async def volatile_is_refused(self) -> None:
        """With an error of its own, within its timeout."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await self.sender.at(Journal, "sent-0").read.options(timeout=0.5)()
        except SendTimeout:
            assert clock() - began < PATIENCE
        else:
            raise AssertionError("a volatile message was answered without Redis")

    async def recovered(self, seconds: float = 10.0) -> None:
        """Requests go by the streams again, all of them, and are acknowledged there."""
        await eventually_async(self._reads, seconds, "a volatile answer")
        await eventually_async(self._publishes, seconds, "requests in the streams")

    async def _reads(self) -> bool:
        try:
            await self.sender.at(Journal, "sent-0").read.options(timeout=1)()
        except SendTimeout:
            return False
        return True

    async def _publishes(self) -> bool:
        """Of a client and of turns."""
        names = ["probe", "probe-target"]
        before = [await self._added(name) for name in names]
        await self.sender.at(Journal, "probe").pass_on("probe-target", ["x"])
        after = [await self._added(name) for name in names]
        return all(new > old for old, new in zip(before, after, strict=True))

    async def _added(self, name: str) -> int:
        """Entries that the stream of an entity ever had."""
        try:
            described = await self.redis("XINFO", "STREAM", self.stream_of(name))
        except RedisError:
            return 0
        return int(dict(zip(described[::2], described[1::2], strict=True))[b"entries-added"])

    async def nothing_stays(self) -> None:
        """All entries are acknowledged and deleted."""

        async def empty() -> bool:
            streams = await self.redis("KEYS", "eq:*:stream:*")
            pending = [(await self.redis("XPENDING", stream, "runner"))[0] for stream in streams]
            return not sum([await self.redis("XLEN", stream) for stream in streams]) and not sum(pending)

        await eventually_async(empty, 10.0, "empty streams")


class SecondServer:
    """Another Valkey, also on a port, so that one can be the other's replica."""

    def __init__(self, url: str, port: int, client: Redis) -> None:
        self.url = url
        self.port = port
        self.client: Any = client

    async def redis(self, *command: object) -> Any:
        return await self.client.execute_command(*command)

    async def follow(self, scene: Outage) -> None:
        """Becomes the replica of the scene's server, and has all its data."""
        port = free_port()
        await scene.config("port", port)
        await self.redis("REPLICAOF", "127.0.0.1", port)

        async def linked() -> bool:
            return b"master_link_status:up" in await self.redis("INFO", "replication")

        await eventually_async(linked, 20.0, "a replica in sync")

    async def is_used(self) -> None:
        async def reading() -> bool:
            return b"cmd=xreadgroup" in await self.redis("CLIENT", "LIST")

        await eventually_async(reading, 10.0, "a reader at the new server")


@asynccontextmanager
async def second_server(directory: Path) -> AsyncGenerator[SecondServer]:
    sockets = Path(tempfile.mkdtemp(prefix="eqv"))
    server = ValkeyServer(directory, sockets)
    await asyncio.to_thread(server.start)
    try:
        async with open_client(server.url) as client:
            cast("Any", client).response_callbacks.clear()
            port = free_port()
            second = SecondServer(server.url, port, client)
            await second.redis("CONFIG", "SET", "port", port)
            yield second
    finally:
        await asyncio.to_thread(server.stop)
        shutil.rmtree(sockets)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


@asynccontextmanager
async def outage(servers: PrivateServers, namespace: str, **settings: Any) -> AsyncGenerator[Outage]:
    """Requests are on their way when it begins; at its end all is checked."""
    settings = {"sweep_interval": 3600.0, **settings}
    async with (
        fault_proxy(servers.redis_url) as proxy,
        open_client(servers.redis_url) as direct,
        open_cluster(app, servers.postgres_url, proxy.url, namespace, **settings) as cluster,
    ):
        sender = await cluster.client()
        runner = await cluster.start()
        await cluster.serving(runner, shards=SHARDS)
        scene = Outage(proxy, direct, cluster, sender)
        scene.load.start()
        try:
            await scene.load.goes_on()
            yield scene
            await scene.recovered()
            await scene.load.goes_on()
            await scene.load.end()
            log.info("%d answers, the slowest after %.2f s", scene.load.answered, scene.load.slowest)
            await scene.nothing_stays()
        finally:
            await scene.load.cancel()
            servers.thaw()
