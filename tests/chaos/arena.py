"""Everything that a run consists of: private servers, links, workers, producers, and a directory for what they
write."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from entityq.embedded import start_temporary
from tests.chaos.crew import Links, Producer, Worker
from tests.chaos.queries import QUERIES
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import PrivateServers, connected, migrate_database


@dataclass(slots=True)
class Arena:
    servers: PrivateServers
    directory: Path
    workers: dict[str, Worker] = field(default_factory=dict[str, Worker])
    producers: dict[str, Producer] = field(default_factory=dict[str, Producer])

    def member(self, name: str) -> Worker | Producer:
        return self.workers[name] if name in self.workers else self.producers[name]

    def end_backends(self, query: str, pick: float) -> int:
        """Ends one of these sessions, or all of them where `pick` is negative; returns how many."""
        with connected(self.servers.postgres_url) as connection:
            pids = [row[0] for row in connection.execute(QUERIES[query]).fetchall()]
            chosen = pids if pick < 0 else pids[int(pick * len(pids)) :][:1]
            for pid in chosen:
                connection.execute(QUERIES["terminate"], {"pid": pid})
        return len(chosen)


@asynccontextmanager
async def open_arena(
    directory: Path, *, workers: int, producers: int, seed: int, started: float
) -> AsyncGenerator[Arena]:
    """Nothing of it is left afterwards, but the directory."""
    async with AsyncExitStack() as stack:
        embedded = await asyncio.to_thread(start_temporary)
        stack.callback(embedded.close)
        servers = PrivateServers(embedded)
        stack.callback(servers.thaw)
        await asyncio.to_thread(_prepare, servers.postgres_url)
        arena = Arena(servers, directory)
        stack.push_async_callback(asyncio.to_thread, _kill_all, arena)
        for number in range(workers):
            worker = Worker(f"w{number + 1}", await _links(stack, servers), directory)
            arena.workers[worker.name] = worker
        for number in range(producers):
            links = await _links(stack, servers)
            producer = Producer(f"p{number + 1}", links, directory, seed, started)
            arena.producers[producer.name] = producer
        yield arena


async def _links(stack: AsyncExitStack, servers: PrivateServers) -> Links:
    postgres = await stack.enter_async_context(fault_proxy(servers.postgres_url))
    redis = await stack.enter_async_context(fault_proxy(servers.redis_url))
    return Links(postgres, redis)


def _prepare(postgres_url: str) -> None:
    migrate_database(postgres_url, "chaos")
    with connected(postgres_url) as connection:
        connection.execute(QUERIES["install"])


def _kill_all(arena: Arena) -> None:
    for worker in arena.workers.values():
        worker.runners()
    lives = [life for producer in arena.producers.values() for life in producer.lives]
    lives += [life for worker in arena.workers.values() for life in worker.lives]
    for life in lives:
        life.kill()
    left = [runner for worker in arena.workers.values() for runner in worker.left()]
    for runner in left:
        runner.kill()
    psutil.wait_procs(left, timeout=10)
