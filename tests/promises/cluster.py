"""A cluster in one process: clients and runners that start, stop, and die, on the servers of a test."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from redis.asyncio import Redis

from entityq import Entity
from entityq.app import EntityQ
from entityq.call import Call
from entityq.client.client import Client
from entityq.codec import Limits
from entityq.config import Servers, Settings
from entityq.entity import new_handle
from entityq.redis.connect import open_client
from entityq.redis.keys import Keys
from entityq.runner.life import Life
from entityq.runner.opening import open_runner
from entityq.runner.runner import Runner
from entityq.serializer import Serializer
from entityq.snowflake import Snowflakes, client_machine
from tests.support.servers import Connection, connected
from tests.support.waiting import eventually_async

E = TypeVar("E", bound=Entity)

PATIENCE = 20.0


@dataclass(slots=True)
class Sending:
    """One client object, as the home of handles."""

    client: Client
    serializer: Serializer
    settings: Settings
    ids: Snowflakes = field(default_factory=lambda: Snowflakes(client_machine()))

    def new_id(self) -> int:
        return self.ids.new()

    def sender(self) -> Client:
        return self.client

    def receipt(self, call: Call, request_id: int, *, duplicate: bool) -> NoReturn:
        raise NotImplementedError

    def at(self, entity: type[E], entity_id: str) -> E:
        return new_handle(entity, entity_id, self)


@dataclass(slots=True)
class Running:
    """A runner and its task."""

    name: str
    runner: Runner
    task: asyncio.Task[None]
    sql: Connection

    @property
    def life(self) -> Life:
        assert self.runner.life is not None
        return self.runner.life

    async def stop(self) -> None:
        """Drains."""
        await self.runner.stop()
        await asyncio.wait_for(self.task, PATIENCE)

    async def abort(self) -> None:
        """Ends it in the middle of whatever it does, without a word to anybody: its connection drops first."""
        self.sql.execute("SELECT pg_terminate_backend(pid) FROM entityq.runner WHERE name = %s", [self.name])
        self.task.cancel()
        await asyncio.wait([self.task], timeout=PATIENCE)
        assert self.task.cancelled()


@dataclass(slots=True)
class Cluster:
    """Everything that was opened is closed at the end of `open_cluster`."""

    app: EntityQ
    settings: Settings
    servers: Servers
    redis: Redis
    sql: Connection
    stack: AsyncExitStack
    keys: Keys
    running: list[Running] = field(default_factory=list[Running])

    @property
    def serializer(self) -> Serializer:
        settings = self.settings
        return Serializer(settings.serializer, frozenset(settings.accept), Limits(settings.max_payload))

    def app_settings(self, **changes: Any) -> None:
        """Of all clients and runners from now on."""
        self.settings = replace(self.settings, **changes)

    async def client(self, **changes: Any) -> Sending:
        settings = replace(self.settings, **changes)
        servers = settings.servers()
        assert servers is not None
        client = await Client.open(settings, servers, self.app.definitions)
        self.stack.push_async_callback(client.close)
        return Sending(client, self.serializer, settings)

    async def start(
        self, name: str = "runner", *, app: EntityQ | None = None, place: str = "", **changes: Any
    ) -> Running:
        """Returns when it is a member; its shards come a moment later. `changes`: of its settings."""
        opened: asyncio.Future[Runner] = asyncio.get_running_loop().create_future()
        settings = replace(self.settings, **changes)
        running_it = self._run(name, place, app or self.app, settings, opened)
        task = asyncio.create_task(running_it, name=f"test {name}")
        waits: list[asyncio.Future[Any]] = [task, opened]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        running = Running(name, opened.result(), task, self.sql)
        self.running.append(running)

        async def joined() -> bool:
            if task.done():
                task.result()
            return running.runner.serving.is_set()

        await eventually_async(joined, PATIENCE, f"{name} joined")
        return running

    async def _run(
        self, name: str, place: str, app: EntityQ, settings: Settings, opened: "asyncio.Future[Runner]"
    ) -> None:
        servers = settings.servers()
        assert servers is not None
        client = await Client.open(settings, servers, app.definitions)
        try:
            async with open_runner(
                settings, servers, app.definitions, client, self.serializer, name=name, place=place
            ) as runner:
                opened.set_result(runner)
                await runner.run()
        finally:
            await client.close()

    async def serving(self, *runners: Running, shards: int) -> None:
        """Waits until these have all shards, caught up."""

        async def caught_up() -> bool:
            lives = [running.runner.life for running in runners]
            owned = [owned for life in lives if life is not None for owned in life.shards]
            return len(owned) == shards and not any(one.intake.catching_up for one in owned)

        await eventually_async(caught_up, PATIENCE, "serving all shards")

    def count(self, query: bytes) -> int:
        row = self.sql.execute(query).fetchone()
        assert row is not None
        return int(str(row[0]))

    @property
    def pending(self) -> int:
        return self.count(b"SELECT count(*) FROM entityq.pending")

    async def all_answered(self, seconds: float = PATIENCE) -> None:
        async def none_pending() -> bool:
            return self.pending == 0

        await eventually_async(none_pending, seconds, "an empty pending table")

    def replies(self) -> dict[int, bytes]:
        rows = self.sql.execute("SELECT request_id, reply FROM entityq.outbox").fetchall()
        return {int(str(row[0])): bytes(row[1]) for row in rows if isinstance(row[1], bytes)}


def most_queued(running: Running) -> int:
    """In the fullest mailbox, the running turns included."""
    return max((activation.queued for activation in running.life.residents), default=0)


@asynccontextmanager
async def open_cluster(
    app: EntityQ, postgres_url: str, redis_url: str, namespace: str, **overrides: Any
) -> AsyncGenerator[Cluster]:
    """Settings for impatient tests: sweeps and leases are short."""
    settings = Settings.load(
        namespace,
        {
            "postgres_url": postgres_url,
            "redis_url": redis_url,
            "sweep_interval": 0.3,
            "lease_time": 3.0,
            "termination_time": 3.0,
            "ask_timeout": 20.0,
            **overrides,
        },
    )
    servers = settings.servers()
    assert servers is not None
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_client(redis_url))
        sql = stack.enter_context(connected(postgres_url))
        cluster = Cluster(app, settings, servers, redis, sql, stack, Keys(namespace))
        stack.push_async_callback(_abort_all, cluster)
        yield cluster


async def _abort_all(cluster: Cluster) -> None:
    for running in cluster.running:
        if not running.task.done():
            await running.stop()
