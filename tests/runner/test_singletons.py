"""Singletons on a cluster: one at a time, started again, handed over."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import pytest

from entityq import EntityQ, RetryPolicy, SingletonContext
from tests.support.live import LiveCluster, live_cluster, soon
from tests.support.servers import SHARDS

QUICK = RetryPolicy(initial=0.001, maximum=0.01)


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncGenerator[LiveCluster]:
    async with live_cluster(postgres_url, redis_url, namespace) as cluster:
        yield cluster


@dataclass(slots=True)
class Leader:
    """Where the singleton of all apps of a test tells what it does."""

    tokens: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    running: int = 0
    ended: list[str] = field(default_factory=list[str])
    # It ends when this says so: by an error, or by returning.
    end: Callable[[], None] | None = None
    ends: asyncio.Event = field(default_factory=asyncio.Event)
    # Its cleanup takes until then.
    clean: asyncio.Event = field(default_factory=asyncio.Event)
    swallows: bool = False

    def app(self, cluster: LiveCluster) -> EntityQ:
        app = cluster.app()
        app.singleton(name="leader", retry=QUICK)(self.lead)
        return app

    async def lead(self, context: SingletonContext) -> None:
        assert context.name == "leader"
        assert self.running == 0, "two at once"
        self.tokens.append(context.fencing_token)
        self.running += 1
        try:
            await self.ends.wait()
            self.ends.clear()
            if self.end is not None:
                self.end()
            self.ended.append("returned")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            await self.clean.wait()
            if not self.swallows:
                raise
            self.swallows = False  # a test has an end
        finally:
            self.running -= 1

    async def started(self, times: int) -> None:
        async def enough() -> bool:
            return len(self.tokens) >= times and self.running == 1

        await soon(enough, f"{times} starts")


def fail() -> None:
    raise ValueError("lost its mind")


def leave() -> None:
    raise SystemExit(1)


async def test_it_is_started_again_when_it_fails_or_returns(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    leader = Leader()
    leader.clean.set()
    await cluster.start(leader.app(cluster))
    for number, end in enumerate((fail, leave, None), start=1):
        await leader.started(number)
        leader.end = end
        leader.ends.set()
    await leader.started(4)
    (epoch, _), *_ = leader.tokens
    assert leader.tokens == [(epoch, start) for start in (1, 2, 3, 4)]
    assert "singleton.failed name=leader" in caplog.text
    assert "lost its mind" in caplog.text
    assert "singleton.returned name=leader" in caplog.text


async def test_it_has_ended_before_its_shard_is_given_up(cluster: LiveCluster) -> None:
    leader = Leader()
    app = leader.app(cluster)
    first = await cluster.start(app, "r1")
    await leader.started(1)
    second = await cluster.start(app, "r2", shards=0)
    leaving = asyncio.create_task(cluster.stop(first))

    async def has_the_others() -> bool:
        return leader.ended == ["cancelled"] and len(second.life.shards) == SHARDS - 1

    await soon(has_the_others, "all shards but that of the singleton")
    assert len(leader.tokens) == 1
    leader.clean.set()
    await leader.started(2)
    await leaving
    assert leader.tokens[1] > leader.tokens[0]


async def test_one_that_keeps_its_end_to_itself_is_not_started_again(cluster: LiveCluster) -> None:
    """It returns instead of letting its cancellation out."""
    leader = Leader(swallows=True)
    leader.clean.set()
    app = leader.app(cluster)
    first = await cluster.start(app, "r1")
    await leader.started(1)
    await cluster.start(app, "r2", shards=0)
    await cluster.stop(first)
    await leader.started(2)
    assert leader.tokens[1][0] > leader.tokens[0][0]
    assert leader.ended == ["cancelled"]


async def test_another_runner_starts_it_when_its_own_dies(cluster: LiveCluster) -> None:
    leader = Leader()
    leader.clean.set()
    app = leader.app(cluster)
    first = await cluster.start(app, "r1")
    await leader.started(1)
    await cluster.start(app, "r2", shards=0)
    await cluster.crash(first)
    await leader.started(2)
    assert leader.tokens[1] > leader.tokens[0]


async def test_one_that_ignores_its_end_is_abandoned(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Its shard goes on; what it writes outside has an old fencing token."""
    leader = Leader()
    first = await cluster.start(leader.app(cluster), "r1")
    await leader.started(1)
    other = Leader()
    await cluster.start(other.app(cluster), "r2", shards=0)
    await cluster.stop(first)
    await other.started(1)
    assert "singleton.abandoned" in caplog.text
    assert other.tokens[0] > leader.tokens[0]
    leader.clean.set()


def test_what_cannot_be_a_singleton(cluster: LiveCluster) -> None:
    app = cluster.app()

    def plain(context: SingletonContext) -> None: ...

    async def alone() -> None: ...

    async def leader(context: SingletonContext) -> None: ...

    with pytest.raises(TypeError, match="async def"):
        app.singleton(plain)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(TypeError, match="one argument"):
        app.singleton(alone)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert app.singleton(leader) is leader
    with pytest.raises(TypeError, match="already has a singleton leader"):
        app.singleton(shard_group="other")(leader)
