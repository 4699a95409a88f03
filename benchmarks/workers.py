"""`entityq worker` processes that a benchmark starts, finds out about, and does harm to."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg

Connection = psycopg.Connection[tuple[object, ...]]

STOP_SECONDS = 30.0
# Rarely, because it happens while something is measured.
LOOK_SECONDS = 0.2


class Worker:
    """One worker with one runner, its log in a file."""

    def __init__(self, name: str, app: str, log: Path) -> None:
        self.name = name
        self._log = log
        command = [
            sys.executable,
            "-m",
            "entityq_cli",
            "worker",
            "-A",
            app,
            "-c",
            "1",
            "-n",
            name,
            "-l",
            "info",
        ]
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def runners(self) -> list[psutil.Process]:
        """During a restart there are two, the old one first."""
        return sorted(psutil.Process(self.pid).children(), key=lambda process: process.create_time())

    def runner(self) -> psutil.Process:
        return self.runners()[-1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        for runner in self.runners():
            runner.send_signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self._process.wait(STOP_SECONDS)


class Workers:
    """Of one benchmark, in one cluster whose tables `sql` sees."""

    def __init__(self, sql: Connection, app: str, count: int, directory: Path) -> None:
        self.sql = sql
        self.all = [Worker(f"w{place}", app, directory / f"w{place}.log") for place in range(1, count + 1)]

    def backend(self, worker: Worker) -> int:
        """The process id, in Postgres, of a runner's lease session."""
        row = self.sql.execute(
            "SELECT pid FROM entityq.runner WHERE name = %s ORDER BY incarnation DESC LIMIT 1", [worker.name]
        ).fetchone()
        assert row is not None
        return int(str(row[0]))

    def count(self, pattern: str) -> int:
        """Log lines of all workers that match."""
        return sum(len(re.findall(pattern, worker.log())) for worker in self.all)

    def shares(self) -> dict[str, int]:
        """How many shards each member holds, by the locks in Postgres."""
        rows = self.sql.execute(
            "SELECT r.name, count(*) FROM entityq.runner r JOIN pg_locks l ON l.pid = r.pid"
            " WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock'"
            " AND NOT r.draining GROUP BY r.name"
        ).fetchall()
        return {str(name): int(str(locks)) - 1 for name, locks in rows}  # one is its number

    def wait_until_balanced(self, shards: int, seconds: float = 60.0) -> None:
        """Until each worker has one runner, no runner is leaving, and each shard is held."""
        deadline = time.monotonic() + seconds
        while True:
            shares = self.shares()
            if (
                len(shares) == len(self.all)
                and sum(shares.values()) == shards
                and min(shares.values()) > shards // (2 * len(self.all))
            ):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"shards are held by {shares} after {seconds:g} s")
            time.sleep(LOOK_SECONDS)


@contextmanager
def running_workers(sql: Connection, app: str, count: int, directory: Path) -> Generator[Workers]:
    workers = Workers(sql, app, count, directory)
    try:
        yield workers
    finally:
        for worker in workers.all:
            worker.stop()
