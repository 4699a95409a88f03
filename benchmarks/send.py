"""How many sends a client takes in a second: insert and publish alone, without a runner.

    .venv/bin/python benchmarks/send.py [--requests 10000] [--rounds 7] [--uvloop]

Uses temporary servers of its own.
"""

import argparse
import asyncio
import gc
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version

import psycopg
import uvloop

from entityq import Entity, EntityQ, message
from entityq.embedded import start_temporary
from entityq.postgres.connect import connect
from entityq.postgres.migrate import migrate

NAMESPACE = "benchmark"


def new_app(postgres_url: str, redis_url: str) -> tuple[EntityQ, type["Account"]]:
    app = EntityQ(NAMESPACE, postgres_url=postgres_url, redis_url=redis_url, max_pending=100_000_000)
    return app, app.entity(Account)


class Account(Entity):
    balance: int = 0

    @message(primary_key="reference")
    async def deposit(self, amount: int, reference: str) -> int:
        self.balance += amount
        return self.balance


async def prepare(postgres_url: str) -> None:
    async with await connect(postgres_url, schema="entityq") as connection:
        await migrate(connection, schema="entityq", namespace=NAMESPACE, shards=100)


async def measure(app: EntityQ, account: type[Account], requests: int, rounds: int) -> list[float]:
    handles = [account.at(f"acct-{number}") for number in range(1_000)]
    figures: list[float] = []
    for round_ in range(rounds + 1):
        calls = [
            handles[number % len(handles)].deposit.send(1, f"{os.getpid()}-{round_}-{number}")
            for number in range(requests)
        ]
        started = time.perf_counter()
        await asyncio.gather(*calls)
        figures.append(requests / (time.perf_counter() - started))
    await app.close()
    return figures[1:]  # the first one prepares the statements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    with start_temporary() as servers:
        asyncio.run(prepare(servers.postgres_url))
        with psycopg.connect(servers.postgres_url) as connection:
            postgres = connection.info.server_version // 10_000
        app, account = new_app(servers.postgres_url, servers.redis_url)
        run = uvloop.run if options.uvloop else asyncio.run
        # What the imports left behind is not looked at again by each full collection.
        gc.freeze()
        figures = run(measure(app, account, options.requests, options.rounds))
    print(f"command   {' '.join(sys.argv)}")
    print(f"machine   {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
    packages = ("entityq", "psycopg", "redis", "uvloop", "pydantic")
    print(f"versions  PostgreSQL {postgres}, {', '.join(f'{name} {version(name)}' for name in packages)}")
    print(f"sends/s   median {statistics.median(figures):,.0f}, {min(figures):,.0f} to {max(figures):,.0f}")


if __name__ == "__main__":
    main()
