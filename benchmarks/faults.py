"""How long a fault interrupts a request: `python -m benchmarks.faults [--only kill,calm] [--count 50]`.

Three workers with one runner each serve 100 shards under a steady load. A probe is a request whose turn is
under way at the victim when the fault comes; measured is the time from the fault until somebody has answered
it. Uses temporary servers (embedded PostgreSQL with fsync on, and Valkey).
"""

import argparse
import asyncio
import itertools
import logging
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import uvloop

from benchmarks.held import HELD_SECONDS, PATIENCE, Held, hold_at
from benchmarks.load import Load, steady
from benchmarks.machine import describe
from benchmarks.probe import Probe, app
from benchmarks.workers import Worker, Workers, running_workers
from entityq.address import entity_hash, shard_number
from entityq.embedded import start_temporary
from entityq.postgres.connect import connect
from entityq.postgres.migrate import migrate
from tests.support.servers import PrivateServers

SHARDS = 100
WORKERS = 3
# Of `freeze`: above its lease time, so that the zombie wakes up after its eviction, and finds its turn over.
FROZEN_TURN_SECONDS = 1.0
CALLERS = 1_000
WATCHED = 4


@dataclass(frozen=True, slots=True)
class Bench:
    """What a fault gets."""

    servers: PrivateServers
    workers: Workers
    load: Load
    count: int
    calm_seconds: float

    async def balanced(self) -> None:
        await asyncio.to_thread(self.workers.wait_until_balanced, SHARDS)

    def victim(self, turn: int) -> Worker:
        return self.workers.all[turn % len(self.workers.all)]


@dataclass(frozen=True, slots=True)
class Fault:
    """`run` measures; seconds. The limits are what the project has set itself."""

    title: str
    run: Callable[[Bench], Awaitable[list[float]]]
    p50: float | None = None
    p99: float | None = None
    evicts: bool = False


# ----- faults of a runner


async def each_victim(
    bench: Bench, harm: Callable[[Worker], Awaitable[Any]], seconds: float = HELD_SECONDS
) -> AsyncGenerator[tuple[Held, Worker, float]]:
    for turn in range(bench.count):
        await bench.balanced()
        victim = bench.victim(turn)
        held = await hold_at(victim, turn, seconds)
        began = time.monotonic()
        await harm(victim)
        yield held, victim, await held.answered_after(began)


async def kill(bench: Bench) -> list[float]:
    async def harm(victim: Worker) -> None:
        victim.runner().kill()

    return [seconds async for _, _, seconds in each_victim(bench, harm)]


async def terminate(bench: Bench) -> list[float]:
    async def harm(victim: Worker) -> None:
        backend = bench.workers.backend(victim)
        bench.workers.sql.execute("SELECT pg_terminate_backend(%s)", [backend])

    return [seconds async for _, _, seconds in each_victim(bench, harm)]


async def freeze(bench: Bench) -> list[float]:
    async def harm(victim: Worker) -> None:
        victim.runner().suspend()

    figures: list[float] = []
    attempted = accepted = 0
    async for held, victim, seconds in each_victim(bench, harm, FROZEN_TURN_SECONDS):
        figures.append(seconds)
        before = bench.workers.count(r"turn\.lease_lost")
        victim.runner().resume()
        await bench.balanced()
        attempted += bench.workers.count(r"turn\.lease_lost") - before
        accepted += zombie_commits(bench)
        applied = (await Probe.at(held.entity_id).touch())[2] - held.applied
        assert applied == 2, f"the held turn and one more were applied {applied} times"
    print(f"  commits of zombies: accepted {accepted}, attempted after SIGCONT {attempted}")
    return figures


def zombie_commits(bench: Bench) -> int:
    """Replies stored under an epoch when a later one had begun."""
    row = bench.workers.sql.execute(
        "SELECT count(*) FROM entityq.outbox o JOIN entityq.shard s USING (shard_id)"
        " WHERE o.epoch < s.epoch AND o.replied_at > s.acquired_at"
    ).fetchone()
    assert row is not None
    return int(str(row[0]))


# ----- faults of the servers


async def restart_postgres(bench: Bench) -> list[float]:
    figures: list[float] = []
    for turn in range(bench.count):
        await bench.balanced()
        held = await hold_at(bench.victim(turn), turn)
        await asyncio.to_thread(bench.servers.postgres.kill if turn % 2 else bench.servers.postgres.stop)
        starting = asyncio.create_task(asyncio.to_thread(bench.servers.postgres.start))
        began = await asyncio.to_thread(accepts_connections, bench.servers.postgres_url)
        figures.append(await held.answered_after(began))
        await starting
        bench.workers.sql = await asyncio.to_thread(open_sql, bench.servers.postgres_url)
    return figures


def accepts_connections(url: str) -> float:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        else:
            return time.monotonic()


async def restart_valkey(bench: Bench) -> list[float]:
    """From the moment when Valkey is back, empty, until all that was asked before is answered."""
    figures: list[float] = []
    for _ in range(bench.count):
        await asyncio.to_thread(bench.servers.valkey.kill)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(bench.servers.valkey.start)
        await asyncio.to_thread(bench.servers.flush)
        began = time.monotonic()
        await bench.load.settled()
        figures.append(time.monotonic() - began)
        await asyncio.sleep(0.5)
    return figures


async def flush(bench: Bench) -> list[float]:
    figures: list[float] = []
    for _ in range(bench.count):
        await asyncio.to_thread(bench.servers.flush)
        began = time.monotonic()
        await bench.load.settled()
        figures.append(time.monotonic() - began)
        await asyncio.sleep(0.3)
    return figures


# ----- rolling restarts


async def roll(bench: Bench) -> list[float]:
    """Gaps of shards: from the last reply under one epoch to the first one under the next.

    Of each WATCHED-th shard an entity is asked again and again: together with the steady load, half of what
    this takes at full load.
    """
    rounds = -(-bench.count // WORKERS)
    gaps: list[float] = []
    asked: list[str] = []
    bench.load.forget()
    began = time.monotonic()
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for entity_id in one_entity_per_shard()[::WATCHED]:
            tasks.create_task(watch(entity_id, gaps, asked, stopping))
        for _ in range(rounds):
            for worker in bench.workers.all:
                old = worker.runner()
                worker.signal(signal.SIGHUP)
                await asyncio.to_thread(old.wait, PATIENCE)
                await bench.balanced()
        stopping.set()
    rate = (bench.load.answered + len(asked)) / (time.monotonic() - began)
    print(f"  {rounds} times {WORKERS} workers, {len(gaps)} hand-overs of shards, {rate:,.0f} requests/s")
    return gaps


def one_entity_per_shard() -> list[str]:
    found: dict[int, str] = {}
    for number in itertools.count():
        entity_id = f"gap-{number}"
        found.setdefault(shard_number(entity_hash(entity_id), SHARDS), entity_id)
        if len(found) == SHARDS:
            break
    return list(found.values())


async def watch(entity_id: str, gaps: list[float], asked: list[str], stopping: asyncio.Event) -> None:
    epoch, last = 0, 0.0
    while not stopping.is_set():
        _, now_epoch, _ = await Probe.at(entity_id).touch()
        asked.append(entity_id)
        now = time.monotonic()
        if epoch and now_epoch != epoch:
            gaps.append(now - last)
        epoch, last = now_epoch, now
        await asyncio.sleep(0.005)


# ----- no fault at all


async def calm(bench: Bench) -> list[float]:
    """Full load: every caller asks again as soon as it has its reply."""
    seconds: list[float] = []
    end = time.monotonic() + bench.calm_seconds

    async def ask(number: int) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            await Probe.at(f"calm-{number}").touch()
            seconds.append(time.monotonic() - began)

    async with asyncio.TaskGroup() as tasks:
        for number in range(CALLERS):
            tasks.create_task(ask(number), name=f"caller {number}")
    print(f"  {len(seconds) / bench.calm_seconds:,.0f} requests/s for {bench.calm_seconds:g} s")
    return seconds


# ----- the bench


FAULTS = {
    "kill": Fault("kill -9 of a runner under load", kill, p50=0.150, p99=1.0),
    "freeze": Fault("SIGSTOP of a runner, lease time 5 s", freeze, p99=6.5, evicts=True),
    "terminate": Fault("lease backend terminated", terminate, p99=1.0),
    "postgres": Fault("Postgres restarted, since it accepts connections", restart_postgres, p99=3.0),
    "valkey": Fault("Valkey killed and restarted empty, since it is back", restart_valkey, p99=2.0),
    "flush": Fault("FLUSHALL", flush, p99=2.0),
    "roll": Fault("rolling restart of three runners, gap of a shard", roll, p50=0.050, p99=0.300),
    "calm": Fault("no fault, full load: an ask", calm),
}


def open_sql(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url, autocommit=True, application_name="benchmark")


async def prepare(postgres_url: str) -> None:
    async with await connect(postgres_url, schema="entityq") as connection:
        await migrate(connection, schema="entityq", namespace="faults", shards=SHARDS)


@asynccontextmanager
async def open_bench(options: argparse.Namespace, directory: Path) -> AsyncGenerator[Bench]:
    with start_temporary() as embedded:
        os.environ["ENTITYQ_POSTGRES_URL"] = embedded.postgres_url
        os.environ["ENTITYQ_REDIS_URL"] = embedded.redis_url
        print(
            describe(embedded.postgres_url), f"load      {options.rate} asks/s, {WORKERS} runners\n", sep="\n"
        )
        await prepare(embedded.postgres_url)
        servers = PrivateServers(embedded)
        sql = open_sql(embedded.postgres_url)
        with running_workers(sql, "benchmarks.probe:app", WORKERS, directory) as workers:
            async with app, steady(options.rate) as load:
                bench = Bench(servers, workers, load, options.count, options.calm_seconds)
                await bench.balanced()
                await load.settled()
                load.forget()
                yield bench


async def measure(options: argparse.Namespace) -> bool:
    good = True
    with tempfile.TemporaryDirectory() as directory:
        async with open_bench(options, Path(directory)) as bench:
            for name in options.only.split(","):
                fault = FAULTS[name]
                evictions = bench.workers.count(r"runner\.evicted")
                good &= report(fault, await fault.run(bench))
                evictions = bench.workers.count(r"runner\.evicted") - evictions
                await bench.load.settled()
                errors, slowest = len(bench.load.errors), bench.load.slowest
                print(
                    f"  load: {bench.load.answered} answered, {errors} errors, slowest {slowest:.2f} s; "
                    f"evictions {evictions}",
                    *bench.load.errors[:3],
                    sep="\n  ",
                    flush=True,
                )
                bench.load.forget()
                good &= errors == 0 and (fault.evicts or evictions == 0)
    return good


def report(fault: Fault, seconds: list[float]) -> bool:
    ordered = sorted(seconds)
    middle, tail = statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    reached = middle <= (fault.p50 or middle) and tail <= (fault.p99 or tail)
    limits = ", ".join(
        f"{name} <= {1000 * limit:,.0f} ms"
        for name, limit in (("p50", fault.p50), ("p99", fault.p99))
        if limit is not None
    )
    verdict = f"({limits}: {'reached' if reached else 'NOT REACHED'})" if limits else ""
    print(
        f"{fault.title}: n={len(ordered)} p50 {1000 * middle:,.0f} ms, p99 {1000 * tail:,.0f} ms, "
        f"max {1000 * ordered[-1]:,.0f} ms {verdict}"
    )
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--calm-seconds", type=float, default=600.0, help="of full load without a fault")
    parser.add_argument("--rate", type=float, default=500.0, help="asks a second")
    logging.basicConfig(level=logging.ERROR)  # lost connections are what is measured
    if not uvloop.run(measure(parser.parse_args())):
        sys.exit(1)


if __name__ == "__main__":
    main()
