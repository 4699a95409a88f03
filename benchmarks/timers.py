"""How late timers are, and what those cost that are not due: `python -m benchmarks.timers [--far 1000000] [--runs 3]`.

One worker with one runner and 100 shards, on temporary servers (embedded PostgreSQL with fsync on, and Valkey). The
lateness is the time at which a handler begins, minus its eta, on the one clock of the machine.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import psutil
import psycopg
import uvloop

from benchmarks.__main__ import prepare, worker
from benchmarks.machine import describe, spread
from entityq import Entity, EntityQ, message
from entityq.embedded import start_temporary

NAMED = "benchmarks.timers:app"
COUNT = 1_000
LEAD = timedelta(seconds=2)
BATCH = 10_000
IDLE_SECONDS = 30.0

app = EntityQ("benchmark", max_pending=10_000_000)


@app.entity
class Clock(Entity):
    @message
    async def tell(self) -> float:
        return time.time()


async def lateness(spread_over: timedelta) -> list[float]:
    """Of 1,000 timers in ms, sorted."""
    first = datetime.now(UTC) + LEAD
    etas = [first + spread_over * number / COUNT for number in range(COUNT)]
    sent = await app.send_many(
        [Clock.at(f"c{number}").tell.options(eta=eta).request() for number, eta in enumerate(etas)]
    )
    began = await asyncio.gather(*(each.receipt for each in sent))
    return sorted(1000 * (at - eta.timestamp()) for at, eta in zip(began, etas, strict=True))


async def report_lateness(title: str, runs: int, spread_over: timedelta) -> None:
    figures = [await lateness(spread_over) for _ in range(runs)]
    for name, place in (("p50", COUNT // 2), ("p99", COUNT * 99 // 100), ("max", COUNT - 1)):
        print(f"{title:<38} {name} {spread([run[place] for run in figures], 'ms', 1)}", flush=True)
    assert min(run[0] for run in figures) >= 0, "one was early"


def used(members: Sequence[psutil.Process]) -> float:
    return sum(sum(member.cpu_times()[:2]) for member in members if member.is_running())


async def report_idle(title: str, runner: psutil.Process, postgres: psutil.Process) -> None:
    await asyncio.sleep(5)
    servers = [postgres, *postgres.children(recursive=True)]
    runners = [runner, *runner.children(recursive=True)]
    before, began = (used(runners), used(servers)), time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    seconds = time.perf_counter() - began
    shares = [
        100 * (after - then) / seconds
        for after, then in zip((used(runners), used(servers)), before, strict=True)
    ]
    memory = max(member.memory_info().rss for member in runners) / 1024**2
    print(
        f"{title:<38} worker {shares[0]:.2f} %, Postgres {shares[1]:.2f} % of a core, {memory:.0f} MiB",
        flush=True,
    )


async def fill(count: int) -> None:
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        far = timedelta(days=30)
        await app.send_many(
            [
                Clock.at(f"far{number}").tell.options(delay=far + timedelta(seconds=number)).request()
                for number in range(start, min(start + BATCH, count))
            ]
        )
    seconds = time.perf_counter() - began
    print(f"{count:,} timers stored in {seconds:.0f} s, {count / seconds:,.0f} per second", flush=True)


async def measure(far: int, runs: int, runner: psutil.Process, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as sql:
        row = sql.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        postgres = psutil.Process(int(row[0])).parent()
        assert postgres is not None
        async with app:
            await asyncio.gather(*(Clock.at(f"c{number}").tell() for number in range(COUNT)))
            second = timedelta(seconds=1)
            await report_lateness("1,000 due within one second", runs, second)
            await report_lateness("1,000 due at one instant", runs, timedelta())
            await report_idle("idle, no timer", runner, postgres)
            await fill(far)
            sql.execute("VACUUM ANALYZE")
            await report_idle(f"idle, {far:,} timers", runner, postgres)
            await report_lateness(f"1,000 within a second, among {far:,}", runs, second)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--far", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with start_temporary() as servers:
        os.environ["ENTITYQ_POSTGRES_URL"] = servers.postgres_url
        os.environ["ENTITYQ_REDIS_URL"] = servers.redis_url
        print(describe(servers.postgres_url), "worker    1 runner\n", sep="\n", flush=True)
        asyncio.run(prepare(servers))
        with worker(1, NAMED) as process:
            runner = psutil.Process(process.pid)
            uvloop.run(measure(arguments.far, arguments.runs, runner, servers.postgres_url))


if __name__ == "__main__":
    main()
