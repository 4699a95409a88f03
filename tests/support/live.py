"""A cluster inside a test's process: apps with test entities, runners, and an orderly end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import psycopg
from redis.asyncio import Redis

from entityq import EntityQ, RetryPolicy
from entityq.postgres.connect import connect
from entityq.redis.connect import open_client
from entityq.runner.life import Life
from entityq.runner.runner import Runner
from tests.support.servers import SCHEMA, SHARDS
from tests.support.stage import Actor, Stage
from tests.support.waiting import eventually_async

A = TypeVar("A", bound=Actor)
T = TypeVar("T")

STOP_DEADLINE = 20.0
ONCE = RetryPolicy(attempts=1)


@dataclass(eq=False)
class Member:
    """A runner that runs."""

    runner: Runner
    task: asyncio.Task[None]
    stack: AsyncExitStack

    @property
    def life(self) -> Life:
        assert self.runner.life is not None
        return self.runner.life

    def serves(self, shards: int) -> bool:
        """Whether it has so many shards, all caught up."""
        life = self.runner.life
        if life is None or len(life.shards) != shards:
            return False
        # In the table of streams: it has joined the stream, too.
        return len(life.shards.streams) == shards and not any(
            owned.intake.catching_up for owned in life.shards
        )

    async def stop(self) -> None:
        """As on SIGTERM."""
        async with asyncio.timeout(STOP_DEADLINE):
            await self.runner.stop()
            await self.task
            await self.stack.aclose()

    async def crash(self) -> None:
        """Nothing is handed over or announced; its connections end, as those of a killed process do."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.stack.aclose()


class LiveCluster:
    """Runners and apps that one test starts. `stage` is where its entities and the test meet."""

    def __init__(self, configuration: Mapping[str, Any], redis: Redis) -> None:
        self.stage = Stage()
        self.namespace: str = configuration["namespace"]
        self._configuration = configuration
        self._apps: list[EntityQ] = []
        self._members: list[Member] = []
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._redis: Any = redis

    # ----- apps and entities

    def app(self, **settings: object) -> EntityQ:
        """An app of this cluster; `settings` differ from the test's defaults."""
        overrides: dict[str, Any] = {**self._configuration, **settings}
        app = EntityQ("behaviours", **overrides)
        self._apps.append(app)
        return app

    def actor(self, app: EntityQ, cls: type[A], **options: Any) -> type[A]:
        """An entity type of the app with the class's name. A defect is answered at once, unless `retry` is given."""
        subclass = type(cls.__name__, (cls,), {"_stage": self.stage, "__module__": cls.__module__})
        options.setdefault("retry", ONCE)
        return app.entity(**options)(cast("type[A]", subclass))

    # ----- runners

    async def start(
        self, app: EntityQ, name: str = "r1", *, groups: Sequence[str] = (), shards: int = SHARDS
    ) -> Member:
        """A runner that serves so many shards; 0: do not wait for them."""
        stack = AsyncExitStack()
        runner = await stack.enter_async_context(app.open_runner(name=name, groups=groups))
        member = Member(runner, asyncio.create_task(runner.run(), name=f"runner {name}"), stack)
        self._members.append(member)

        async def serves() -> bool:
            assert not member.task.done(), member.task
            return member.serves(shards) if shards else runner.life is not None

        await eventually_async(serves, 10.0, f"{name} serves {shards} shards")
        return member

    async def stop(self, member: Member) -> None:
        self._members.remove(member)
        await member.stop()

    async def crash(self, member: Member) -> None:
        self._members.remove(member)
        await member.crash()

    # ----- what is stored

    async def rows(self, query: str, *values: object) -> list[Any]:
        """Of a statement on the cluster's tables."""
        if self._connection is None:
            url = self._configuration["postgres_url"]
            self._connection = await connect(url, schema=SCHEMA, application_name="tests")
        cursor = await self._connection.execute(query.encode(), values)
        rows = await cursor.fetchall() if cursor.description else []
        return [row[0] if len(row) == 1 else row for row in rows]

    async def pending(self) -> int:
        (count,) = await self.rows("SELECT count(*) FROM pending")
        return int(count)

    async def requests(self) -> int:
        (count,) = await self.rows("SELECT count(*) FROM outbox")
        return int(count)

    async def replies(self) -> int:
        (count,) = await self.rows("SELECT count(*) FROM outbox WHERE reply IS NOT NULL")
        return int(count)

    async def redis(self, *command: object) -> Any:
        return await self._redis.execute_command(*command)

    async def redis_transaction(self, *commands: Sequence[object]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=True)
        for command in commands:
            pipeline.execute_command(*command)
        results: list[Any] = await pipeline.execute()
        return results

    async def flush_redis(self) -> None:
        await self.redis("FLUSHALL")

    # ----- the end

    async def close(self) -> None:
        self.stage.open_all()
        for member in reversed(self._members):
            await member.stop()
        for app in reversed(self._apps):
            await app.close()
        if self._connection is not None:
            await self._connection.close()


@asynccontextmanager
async def live_cluster(
    postgres_url: str, redis_url: str, namespace: str, **settings: object
) -> AsyncGenerator[LiveCluster]:
    """A sweep finds nothing by accident: a test that counts on it says so with `sweep_interval`."""
    configuration: dict[str, Any] = {
        "postgres_url": postgres_url,
        "redis_url": redis_url,
        "namespace": namespace,
        "termination_time": 2.0,
        "sweep_interval": 600.0,
        "ask_timeout": 10.0,
        "send_timeout": 5.0,
        **settings,
    }
    async with open_client(redis_url, name="tests") as redis:
        cluster = LiveCluster(configuration, redis)
        try:
            yield cluster
        finally:
            await cluster.close()


async def soon(condition: Callable[[], Awaitable[T]], what: str) -> T:
    return await eventually_async(condition, 10.0, what)
