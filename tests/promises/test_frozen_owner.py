"""P5 with real processes: an owner that is killed is replaced at once, a frozen one is evicted and cannot write."""

import asyncio
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from entityq.runner.lease_keeper import LeaseKeeper
from examples.bank import app as bank
from tests.promises.cluster import open_cluster
from tests.support.processes import CommandLine, Running
from tests.support.servers import SHARDS, Connection, connected
from tests.support.waiting import eventually

LEASE_TIME = 1.5

# The handler waits for a file, in whichever process it runs.
APP = """
import os
import pathlib
import time

from entityq import Entity, EntityQ, message

app = EntityQ("frozen")
HERE = pathlib.Path(__file__).parent


@app.entity
class Ledger(Entity):
    entries: list[str] = []

    @message(primary_key="key")
    def add(self, key: str) -> list[str]:
        (HERE / f"entered-{os.getpid()}").touch()
        while not (HERE / "gate").exists():
            time.sleep(0.01)
        self.entries.append(f"{key} by {os.getpid()}")
        return self.entries
"""


@pytest.fixture
def sql(postgres_url: str) -> Iterator[Connection]:
    with connected(postgres_url) as connection:
        connection.execute("SET search_path TO entityq")
        yield connection


def start_worker(entityq: CommandLine, directory: Path, name: str) -> tuple[Running, psutil.Process]:
    """The worker, and its one runner."""
    lease_time = {"ENTITYQ_LEASE_TIME": str(LEASE_TIME)}
    worker = entityq.spawn("worker", "-A", "ledger:app", "-c", "1", "-n", name, cwd=directory, env=lease_time)
    worker.wait_for(r"runner\.joined")
    (runner,) = [child for child in worker.children if "entityq_cli" in child.cmdline()]
    return worker, runner


def test_a_frozen_owner_is_evicted_and_cannot_write(
    entityq: CommandLine, sql: Connection, tmp_path: Path
) -> None:
    (tmp_path / "ledger.py").write_text(APP)
    frozen, process = start_worker(entityq, tmp_path, "frozen")
    send = ("send", "-A", "ledger:app", "Ledger/l-1", "add", "-k", '{"key": "k-1"}')
    waiting = entityq.spawn(*send, "--wait", "--timeout", "60", cwd=tmp_path)
    eventually((tmp_path / f"entered-{process.pid}").exists, 20, "the turn in the runner that will freeze")
    process.send_signal(signal.SIGSTOP)
    try:
        other, replacement = start_worker(entityq, tmp_path, "other")
        evicted = other.wait_for(r"runner\.evicted incarnation=(\d+) name=frozen")
        eventually((tmp_path / f"entered-{replacement.pid}").exists, 20, "the same turn in another runner")
        (tmp_path / "gate").touch()
        assert waiting.wait().code == 0
    finally:
        process.send_signal(signal.SIGCONT)

    # Awake, its turn goes on to its commit, and so does the runner, as another member.
    frozen.wait_for(r"leases\.lost")
    eventually(lambda: len(re.findall(r"runner\.joined", frozen.stderr)) == 2, 20, "a second life")
    assert f"runner.joined incarnation={evicted[1]} " in frozen.stderr
    again = entityq.run(*send, "--wait", cwd=tmp_path)
    assert again.stdout == waiting.stdout
    assert sql.execute("SELECT version, epoch > 1 FROM entity").fetchall() == [(1, True)]
    assert str(replacement.pid) in again.stdout

    def shared() -> bool:
        rows = sql.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'"
            " AND l.mode = 'ExclusiveLock' AND a.application_name ~ '^entityq:[0-9]+$' GROUP BY pid"
        ).fetchall()
        return len(rows) == 2 and all(int(str(row[0])) > 1 for row in rows)

    eventually(shared, 20, "shards held by both")


@pytest.mark.parametrize("heard", [True, False], ids=["by the control channel", "without Redis"])
async def test_a_killed_owner_is_replaced_without_polling(
    entityq: CommandLine,
    postgres_url: str,
    redis_url: str,
    namespace: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    heard: bool,
) -> None:
    """The looks of the runner in this process are further apart than the test may take."""
    redis_url = redis_url if heard else f"unix://{tmp_path}/nobody"
    defaults = LeaseKeeper.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "poll", 600.0)
    # Longer, too: nobody is evicted here.
    async with open_cluster(bank, postgres_url, redis_url, namespace, lease_time=60.0) as cluster:
        survivor = await cluster.start("survivor")
        worker = entityq.spawn("worker", "-A", "examples.bank:app", "-c", "1", "-n", "victim")
        await asyncio.to_thread(worker.wait_for, r"leases\.acquired")
        await asyncio.to_thread(
            eventually, lambda: len(survivor.life.shards) < SHARDS, 20, "a part of the shards for the victim"
        )
        for _ in range(2):  # the survivor has seen it, and waits for its end
            await beat(cluster.sql, "survivor")
        worker.kill()
        await cluster.serving(survivor, shards=SHARDS)


async def beat(sql: Connection, name: str) -> None:
    def count() -> object:
        return sql.execute("SELECT heartbeat FROM entityq.runner WHERE name = %s", [name]).fetchone()

    before = count()
    await asyncio.to_thread(eventually, lambda: count() != before, 20, f"a beat of {name}")
