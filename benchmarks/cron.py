"""A schedule of every second whose owner is killed: `python -m benchmarks.cron [--instants 60] [--kills 3]`.

Two workers with one runner each and 100 shards, on temporary servers. Each kill -9 hits the runner that holds the
schedule's shard, in the middle of a second or at its edge. Prints how often each instant was run, and the lateness: the
time at which a handler begins, minus its instant, on the one clock of the machine.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import uvloop

from benchmarks.__main__ import prepare
from benchmarks.machine import describe
from benchmarks.workers import Connection, Workers, running_workers
from entityq import Entity, EntityQ, message
from entityq.address import Address
from entityq.embedded import start_temporary

SHARDS = 100
NAMED = "benchmarks.cron:app"
# Parts of a second after an instant: in the middle, and where the next one is about to be fired, or just was.
MOMENTS = (0.5, 0.995, 0.005)

app = EntityQ("benchmark", lease_time=5.0)


@app.entity
class Clock(Entity):
    runs: tuple[tuple[datetime, float], ...] = ()

    @message
    async def tick(self, instant: datetime) -> None:
        self.runs = (*self.runs, (instant, time.time()))

    @message(persisted=False)
    async def read(self) -> tuple[tuple[datetime, float], ...]:
        return self.runs


app.cron("* * * * * *", name="tick", instant="instant", catch_up="all")(Clock.at("main").tick)


async def until(count: int) -> tuple[tuple[datetime, float], ...]:
    """The runs, once there are so many."""
    while True:
        runs = await Clock.at("main").read.options(timeout=30)()
        if len(runs) >= count:
            return runs
        await asyncio.sleep(0.2)


async def kill_owner(workers: Workers, shard_id: int, moment: float) -> None:
    await asyncio.sleep((moment - time.time()) % 1)
    row = workers.sql.execute(
        "SELECT r.name FROM entityq.shard s JOIN entityq.runner r USING (incarnation) WHERE s.shard_id = %s",
        [shard_id],
    ).fetchone()
    assert row is not None
    (owner,) = [worker for worker in workers.all if worker.name == row[0]]
    owner.runner().kill()
    print(f"killed {owner.name} at {time.time() % 60:06.3f}", flush=True)


async def measure(workers: Workers, count: int, kills: int) -> None:
    async with app, app.open_client() as client:
        shard_id = client.facts.shard_id(Address("_cron.default", "tick"))
        assert shard_id is not None
        for kill in range(kills):
            await until((kill + 1) * count // (kills + 1))
            await kill_owner(workers, shard_id, MOMENTS[kill % len(MOMENTS)])
        runs = await until(count)
    report(runs[:count])


def report(runs: Sequence[tuple[datetime, float]]) -> None:
    first = runs[0][0]
    expected = {first + timedelta(seconds=number) for number in range(len(runs))}
    times = Counter(instant for instant, _ in runs)
    late = sorted(1000 * (at - instant.timestamp()) for instant, at in runs)
    print(f"runs {len(runs)}, instants {len(times)}, missing {len(expected - set(times))}")
    print(
        f"lateness p50 {late[len(late) // 2]:.1f} ms, p90 {late[len(late) * 9 // 10]:.1f} ms, max {late[-1]:.1f} ms"
    )
    if set(times) != expected:
        sys.exit("an instant was lost or doubled")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instants", type=int, default=60)
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    with start_temporary() as servers, tempfile.TemporaryDirectory() as directory:
        os.environ["ENTITYQ_POSTGRES_URL"] = servers.postgres_url
        os.environ["ENTITYQ_REDIS_URL"] = servers.redis_url
        print(describe(servers.postgres_url), "workers   2, 1 runner each\n", sep="\n", flush=True)
        asyncio.run(prepare(servers))
        with psycopg.connect(servers.postgres_url, autocommit=True) as sql:
            connection: Connection = sql
            with running_workers(connection, NAMED, 2, Path(directory)) as workers:
                workers.wait_until_balanced(SHARDS)
                uvloop.run(measure(workers, arguments.instants, arguments.kills))


if __name__ == "__main__":
    main()
