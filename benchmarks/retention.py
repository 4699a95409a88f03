"""A long run with retention on: whether throughput and the size of the tables stay as they are.

    python -m benchmarks.retention [--requests 1000000] [--keep 10] [--keep-keys 20] [--callers 1000]

Each request has a primary key. Replies are kept for `--keep` seconds, keys for `--keep-keys`: less than an app may
declare, so that a run of minutes is long. It ends with 1 where the last 100,000 requests were slower by more than 10 %
than the first. Uses temporary servers, so that nothing of yours is touched.
"""

import argparse
import asyncio
import os
import sys
import time
from dataclasses import dataclass, field

import psycopg
import uvloop

from benchmarks.__main__ import prepare, warm_up, worker
from benchmarks.counter import Counter, app
from benchmarks.machine import describe
from entityq.embedded import start_temporary

PART = 100_000
ENTITIES = 2_500
ALLOWED = 0.9
TABLES = ("outbox", "pending", "entity")


@dataclass(slots=True)
class Load:
    """So many callers ask, each again as soon as it is answered."""

    requests: int
    started: int = 0
    answered: int = 0
    part: asyncio.Event = field(default_factory=asyncio.Event)

    async def caller(self) -> None:
        while self.started < self.requests:
            number = self.started
            self.started += 1
            await Counter.at(f"counter-{number % ENTITIES}").add(1, f"r-{number}")
            self.answered += 1
            if self.answered % PART == 0 or self.answered == self.requests:
                self.part.set()


def sizes(sql: psycopg.Connection[tuple[object, ...]]) -> str:
    """MiB of table and indexes, and the rows of the outbox."""
    shown: list[str] = []
    for table in TABLES:
        row = sql.execute(
            "SELECT pg_table_size(%s::regclass) / 1048576, pg_indexes_size(%s::regclass) / 1048576",
            [table] * 2,
        ).fetchone()
        assert row is not None
        shown.append(f"{row[0]:>7} {row[1]:>7}")
    row = sql.execute("SELECT count(*), count(*) FILTER (WHERE reply = '') FROM outbox").fetchone()
    assert row is not None
    return f"{'  '.join(shown)}  {row[0]:>9,} {row[1]:>9,}"


async def run(postgres_url: str, requests: int, callers: int) -> list[float]:
    """Requests a second of each part."""
    rates: list[float] = []
    header = "  ".join(f"{table + ' MiB':>7} {'indexes':>7}" for table in TABLES)
    print(f"{'answered':>9} {'per s':>8}  {header}  {'rows':>9} {'keys':>9}")
    options = "-c search_path=entityq"
    with psycopg.connect(postgres_url, autocommit=True, options=options) as sql:
        async with app:
            await warm_up()
            load = Load(requests)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(callers):
                    tasks.create_task(load.caller())
                while load.answered < requests:
                    before, began = load.answered, time.perf_counter()
                    await load.part.wait()
                    load.part.clear()
                    rates.append((load.answered - before) / (time.perf_counter() - began))
                    # In a thread: the callers go on.
                    shown = await asyncio.to_thread(sizes, sql)
                    print(f"{load.answered:>9,} {rates[-1]:>8,.0f}  {shown}", flush=True)
    return rates


def keep(postgres_url: str, seconds: float, keys: float) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as sql:
        while not sql.execute("SELECT 1 FROM entityq.retention").fetchone():
            time.sleep(0.1)  # the runner declares it when it starts
        sql.execute(
            "UPDATE entityq.retention SET keep = make_interval(secs => %s), keep_keys = make_interval(secs => %s)",
            [seconds, keys],
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--keep", type=float, default=10.0)
    parser.add_argument("--keep-keys", type=float, default=20.0)
    parser.add_argument("--callers", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    with start_temporary() as servers:
        os.environ["ENTITYQ_POSTGRES_URL"] = servers.postgres_url
        os.environ["ENTITYQ_REDIS_URL"] = servers.redis_url
        print(describe(servers.postgres_url), f"worker    {arguments.processes} runner(s)\n", sep="\n")
        asyncio.run(prepare(servers))
        with worker(arguments.processes):
            keep(servers.postgres_url, arguments.keep, arguments.keep_keys)
            rates = uvloop.run(run(servers.postgres_url, arguments.requests, arguments.callers))
    ratio = rates[-1] / rates[0]
    print(f"\nthe last part at {100 * ratio:.0f} % of the first")
    if ratio < ALLOWED:
        sys.exit(1)


if __name__ == "__main__":
    main()
