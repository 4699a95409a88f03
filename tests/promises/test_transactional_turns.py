"""Transactional turns of real processes that are killed or frozen: their SQL commits once, or not at all."""

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.processes import CommandLine, Running
from tests.support.servers import Connection, connected
from tests.support.waiting import eventually

LEASE_TIME = 1.5

# The handler has written, and waits for a file, in whichever process it runs.
APP = """
import asyncio
import os
import pathlib

from entityq import Entity, EntityQ, message

app = EntityQ("transactions")
HERE = pathlib.Path(__file__).parent


@app.entity
class Note(Entity):
    text: str = ""

    @message(persisted=True)
    async def write(self, text: str) -> None:
        self.text = text


@app.entity
class Ledger(Entity):
    entries: list[str] = []

    @message(primary_key="key", transactional=True)
    async def add(self, key: str) -> list[str]:
        connection = self.context.connection
        await connection.execute("INSERT INTO entries (key, pid) VALUES (%s, %s)", [key, os.getpid()])
        self.entries.append(key)
        await Note.at(key).write.send(key)
        (HERE / f"entered-{os.getpid()}").touch()
        while not (HERE / "gate").exists():
            await asyncio.sleep(0.01)
        return self.entries
"""

SEND = ("send", "-A", "ledger:app", "Ledger/l-1", "add", "-k", '{"key": "k-1"}')


@pytest.fixture
def sql(postgres_url: str, tmp_path: Path) -> Iterator[Connection]:
    (tmp_path / "ledger.py").write_text(APP)
    with connected(postgres_url) as connection:
        connection.execute("CREATE TABLE entries (key text PRIMARY KEY, pid integer)")
        connection.execute("SET search_path TO entityq, public")
        yield connection


def start_worker(entityq: CommandLine, directory: Path, name: str) -> tuple[Running, psutil.Process]:
    """The worker, and its one runner."""
    lease_time = {"ENTITYQ_LEASE_TIME": str(LEASE_TIME)}
    worker = entityq.spawn("worker", "-A", "ledger:app", "-c", "1", "-n", name, cwd=directory, env=lease_time)
    worker.wait_for(r"runner\.joined")
    (runner,) = [child for child in worker.children if "entityq_cli" in child.cmdline()]
    return worker, runner


def started(entityq: CommandLine, directory: Path) -> tuple[Running, psutil.Process, Running]:
    """A worker in the middle of the turn, and who waits for its reply."""
    worker, process = start_worker(entityq, directory, "first")
    waiting = entityq.spawn(*SEND, "--wait", "--timeout", "60", cwd=directory)
    eventually((directory / f"entered-{process.pid}").exists, 30, "the turn in the first runner")
    return worker, process, waiting


def once(sql: Connection, pid: int) -> None:
    """Whatever the turn did, was done once, and all of it by this process."""
    assert sql.execute("SELECT key, pid FROM entries").fetchall() == [("k-1", pid)]
    assert sql.execute("SELECT version FROM entity WHERE type = 'Ledger'").fetchall() == [(1,)]
    assert sql.execute("SELECT count(*) FROM outbox WHERE type = 'Note'").fetchall() == [(1,)]


def test_killed_between_the_sql_and_the_commit(entityq: CommandLine, sql: Connection, tmp_path: Path) -> None:
    first, _, waiting = started(entityq, tmp_path)
    first.kill()
    (tmp_path / "gate").touch()
    _, second = start_worker(entityq, tmp_path, "second")
    assert waiting.wait(60).code == 0
    once(sql, second.pid)


def test_killed_at_the_commit(entityq: CommandLine, sql: Connection, tmp_path: Path) -> None:
    """The server is at entityq's last statement, and holds the shard, when the process ends."""
    first, process, waiting = started(entityq, tmp_path)
    with slow_commits(sql):
        (tmp_path / "gate").touch()
        eventually(lambda: committing(sql), 20, "the turn at its commit")
        process.send_signal(signal.SIGKILL)
        first.kill()
    _, second = start_worker(entityq, tmp_path, "second")
    assert waiting.wait(60).code == 0
    once(sql, second.pid)


def test_frozen_in_the_middle_of_a_turn(entityq: CommandLine, sql: Connection, tmp_path: Path) -> None:
    """The next owner's statement waits for the same key of the user's table, until the zombie's is ended."""
    first, process, waiting = started(entityq, tmp_path)
    process.send_signal(signal.SIGSTOP)
    try:
        second, replacement = start_worker(entityq, tmp_path, "second")
        second.wait_for(r"runner\.evicted incarnation=(\d+) name=first")
        eventually((tmp_path / f"entered-{replacement.pid}").exists, 8, "the same turn in the second runner")
        (tmp_path / "gate").touch()
        assert waiting.wait(60).code == 0
    finally:
        process.send_signal(signal.SIGCONT)
    # Awake, it goes on to its commit, and then as another member.
    first.wait_for(r"leases\.lost")
    eventually(lambda: first.stderr.count("runner.joined") == 2, 20, "a second life")
    once(sql, replacement.pid)


def test_frozen_at_the_commit(entityq: CommandLine, sql: Connection, tmp_path: Path) -> None:
    """It holds the row of the shard, which the next owner has to change."""
    first, process, waiting = started(entityq, tmp_path)
    with slow_commits(sql):
        (tmp_path / "gate").touch()
        eventually(lambda: committing(sql), 20, "the turn at its commit")
        process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: committing(sql, "idle in transaction"), 20, "a transaction that nobody ends")
        second, replacement = start_worker(entityq, tmp_path, "second")
        second.wait_for(r"runner\.evicted incarnation=(\d+) name=first")
        eventually((tmp_path / f"entered-{replacement.pid}").exists, 8, "the same turn in the second runner")
        assert waiting.wait(60).code == 0
    finally:
        process.send_signal(signal.SIGCONT)
    first.wait_for(r"leases\.lost")
    once(sql, replacement.pid)


@contextmanager
def slow_commits(sql: Connection) -> Generator[None]:
    """Inside of the block a turn that commits waits for the test, which holds a lock, in entityq's statement."""
    sql.execute(
        "CREATE FUNCTION public.wait_for_test() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN SET LOCAL lock_timeout = '20s'; PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$"
    )
    sql.execute("SELECT pg_advisory_lock(4711)")
    sql.execute(
        "CREATE TRIGGER wait_for_test BEFORE INSERT ON entity FOR EACH ROW EXECUTE FUNCTION public.wait_for_test()"
    )
    try:
        yield
    finally:
        sql.execute("SELECT pg_advisory_unlock(4711)")


def committing(sql: Connection, state: str = "active") -> bool:
    rows = sql.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = %s"
        " AND application_name ~ '^entityq:[0-9]+ commit '",
        [state],
    )
    return rows.fetchone() is not None
