"""`make bench`: the figures of the spine, each workload with a worker process of its own.

    python -m benchmarks [--runs 3] [--processes 1] [--only ask,burst,idle,flush]

Uses temporary servers (embedded PostgreSQL with fsync on, and Valkey), so that nothing of yours is touched.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

import psutil
import uvloop

from benchmarks.counter import Counter, app
from benchmarks.machine import describe, spread
from entityq import EntityQError
from entityq.embedded import Embedded, start_temporary
from entityq.postgres.connect import connect
from entityq.postgres.migrate import migrate
from entityq.redis.connect import open_client

IDLE_SECONDS = 20.0


@contextmanager
def worker(processes: int, named: str = "benchmarks.counter:app") -> Generator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "entityq_cli", "worker", "-A", named]
    process = subprocess.Popen([*command, "-c", str(processes), "-l", "warning"], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def prepare(servers: Embedded) -> None:
    async with await connect(servers.postgres_url, schema="entityq") as connection:
        await migrate(connection, schema="entityq", namespace="benchmark", shards=100)


async def warm_up() -> None:
    """Until every shard is served and statements are prepared."""
    await asyncio.gather(*(Counter.at(f"warm-{number}").add(1, f"w-{number}") for number in range(2_000)))


async def one_caller(runs: int) -> None:
    middles: list[float] = []
    tails: list[float] = []
    for run in range(runs):
        times: list[float] = []
        for number in range(1_000):
            began = time.perf_counter()
            await Counter.at(f"one-{number % 100}").add(1, f"one-{run}-{number}")
            times.append(1000 * (time.perf_counter() - began))
        times.sort()
        middles.append(times[500])
        tails.append(times[990])
    print(f"ask to reply, one caller       p50 {spread(middles, 'ms', 2)}")
    print(f"                               p99 {spread(tails, 'ms', 2)}")


async def burst(runs: int) -> None:
    rates: list[float] = []
    for run in range(runs):
        asks = [
            Counter.at(f"burst-{number % 2_500}").add(1, f"burst-{run}-{number}") for number in range(5_000)
        ]
        began = time.perf_counter()
        await asyncio.gather(*asks)
        rates.append(5_000 / (time.perf_counter() - began))
    print(f"5,000 asks at once             {spread(rates, 'requests/s')}")


async def idle(process: subprocess.Popen[bytes]) -> None:
    await asyncio.sleep(2)
    runners = psutil.Process(process.pid).children(recursive=True)
    before = sum(sum(runner.cpu_times()[:2]) for runner in runners)
    began = time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    share = (sum(sum(runner.cpu_times()[:2]) for runner in runners) - before) / (time.perf_counter() - began)
    memory = max(runner.memory_info().rss for runner in runners) / 1024**2
    print(f"100 shards, idle               {100 * share:.2f} % of a core, {memory:.0f} MiB per runner")


async def flush_while_sending(servers: Embedded) -> None:
    """10,000 sends, FLUSHALL every 100 ms meanwhile; every accepted request answered, none applied twice."""
    accepted: list[Any] = []
    refused = flushed = 0

    async def send(number: int) -> None:
        nonlocal refused
        try:
            accepted.append(await Counter.at(f"flush-{number % 500}").add.send(1, f"flush-{number}"))
        except EntityQError:
            refused += 1

    async def flush() -> None:
        nonlocal flushed
        async with open_client(servers.redis_url) as redis:
            commands: Any = redis  # redis-py's methods are typed in part
            while True:
                await commands.flushall()
                flushed += 1
                await asyncio.sleep(0.1)

    flushing = asyncio.create_task(flush())
    began = time.perf_counter()
    for first in range(0, 10_000, 500):
        await asyncio.gather(*(send(number) for number in range(first, first + 500)))
    sent = time.perf_counter() - began
    await asyncio.gather(*accepted)
    answered = time.perf_counter() - began
    flushing.cancel()
    balances = await asyncio.gather(*(Counter.at(f"flush-{number}").read() for number in range(500)))
    print(
        f"FLUSHALL while sending 10,000  {flushed} flushes, {len(accepted)} accepted, {refused} refused, "
        f"{len(accepted)} answered, {sum(balances)} applied; sent in {sent:.1f} s, answered after {answered:.1f} s"
    )
    if sum(balances) != len(accepted):
        sys.exit("a request was lost or applied twice")


async def measure(arguments: argparse.Namespace, servers: Embedded, process: subprocess.Popen[bytes]) -> None:
    workloads: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "ask": lambda: one_caller(arguments.runs),
        "burst": lambda: burst(arguments.runs),
        "idle": lambda: idle(process),
        "flush": lambda: flush_while_sending(servers),
    }
    async with app:
        await warm_up()
        for name in arguments.only.split(","):
            await workloads[name]()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", default="ask,burst,idle,flush")
    arguments = parser.parse_args()
    with start_temporary() as servers:
        os.environ["ENTITYQ_POSTGRES_URL"] = servers.postgres_url
        os.environ["ENTITYQ_REDIS_URL"] = servers.redis_url
        print(
            describe(servers.postgres_url),
            f"worker    {arguments.processes} runner(s)\n",
            sep="\n",
            flush=True,
        )
        asyncio.run(prepare(servers))
        with worker(arguments.processes) as process:
            uvloop.run(measure(arguments, servers, process))


if __name__ == "__main__":
    main()
