"""Limits of the cluster, on real processes: counted by the database's clock, from what the handlers have written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil
import pytest

from tests.support.processes import CommandLine, Running
from tests.support.servers import Connection, PrivateServers, connected, flush
from tests.support.waiting import eventually

PATIENCE = 60.0
RATE = 20
BURST = 2
IMPATIENT = {"ENTITYQ_LEASE_TIME": "1.5", "ENTITYQ_SWEEP_INTERVAL": "0.5"}

APP = """
import os
import pathlib
import time

import psycopg

from entityq import EntityQ, MaxRunning, RateLimit

app = EntityQ("limits")
HERE = pathlib.Path(__file__).parent


def tell(kind: str, number: int) -> None:
    with psycopg.connect(os.environ["ENTITYQ_POSTGRES_URL"], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO journal (kind, number, pid) VALUES (%s, %s, %s)", [kind, number, os.getpid()]
        )


@app.task(rate_limit=RateLimit(20, burst=2, scope="cluster"))
def paced(number: int) -> None:
    tell("start", number)


@app.task(max_running=MaxRunning(2, scope="cluster"))
def held(number: int) -> None:
    tell("start", number)
    while number < 4 and not (HERE / "gate").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    tell("end", number)


@app.task
def send(name: str, numbers: list[int]) -> None:
    for number in numbers:
        {"paced": paced, "held": held}[name].delay(number)
"""


@dataclass(frozen=True, slots=True)
class Line:
    kind: str
    number: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Journal:
    sql: Connection

    def lines(self) -> list[Line]:
        rows = self.sql.execute(
            "SELECT kind, number, pid, extract(epoch FROM at)::float8 FROM journal ORDER BY at"
        ).fetchall()
        return [Line(*cast("tuple[str, int, int, float]", row)) for row in rows]

    def starts(self) -> list[Line]:
        return [line for line in self.lines() if line.kind == "start"]

    def until(self, kind: str, count: int) -> None:
        eventually(
            lambda: len({line.number for line in self.lines() if line.kind == kind}) >= count,
            PATIENCE,
            f"{count} times {kind}",
        )


@pytest.fixture
def journal(postgres_url: str, tmp_path: Path) -> Iterator[Journal]:
    yield from _journal(postgres_url, tmp_path)


def _journal(url: str, directory: Path) -> Iterator[Journal]:
    (directory / "limited.py").write_text(APP)
    with connected(url) as sql:
        sql.execute(
            "CREATE TABLE journal (kind text, number integer, pid integer, at timestamptz DEFAULT clock_timestamp())"
        )
        yield Journal(sql)


def start(entityq: CommandLine, directory: Path, name: str) -> Running:
    worker = entityq.spawn("worker", "-A", "limited:app", "-c", "1", "-n", name, cwd=directory, env=IMPATIENT)
    worker.wait_for(r"runner\.joined")
    return worker


def send(entityq: CommandLine, directory: Path, name: str, count: int) -> None:
    payload = f'{{"name": "{name}", "numbers": {list(range(count))}}}'
    sent = entityq.run("send", "-A", "limited:app", "send", "-k", payload, "--wait", cwd=directory)
    assert sent.code == 0, sent.stderr


def require_pace(starts: list[Line], bursts: int) -> None:
    """In any time not many more than its rate: half a second is for handlers that told of their start late."""
    for first, begin in enumerate(starts):
        for last in range(first, len(starts)):
            most = bursts * BURST + RATE * (starts[last].at - begin.at + 0.5)
            assert last - first + 1 <= most, (first, last)


def test_a_rate_of_the_cluster_holds_over_its_runners_also_when_redis_is_flushed(
    entityq: CommandLine, journal: Journal, redis_url: str, tmp_path: Path
) -> None:
    for name in ("w1", "w2"):
        start(entityq, tmp_path, name)
    send(entityq, tmp_path, "paced", 80)
    journal.until("start", 20)
    flush(redis_url)
    journal.until("start", 80)
    starts = journal.starts()
    assert len(starts) == 80
    assert len({line.pid for line in starts}) == 2
    require_pace(starts, bursts=2)


@pytest.fixture
def private_entityq(private_servers: PrivateServers, namespace: str, tmp_path: Path) -> Iterator[CommandLine]:
    configuration = {
        "ENTITYQ_POSTGRES_URL": private_servers.postgres_url,
        "ENTITYQ_REDIS_URL": private_servers.redis_url,
        "ENTITYQ_NAMESPACE": namespace,
    }
    with CommandLine(configuration, tmp_path) as command_line:
        yield command_line


@pytest.fixture
def private_journal(private_servers: PrivateServers, tmp_path: Path) -> Iterator[Journal]:
    yield from _journal(private_servers.postgres_url, tmp_path)


def test_without_redis_each_runner_keeps_to_its_share(
    private_entityq: CommandLine, private_journal: Journal, private_servers: PrivateServers, tmp_path: Path
) -> None:
    for name in ("w1", "w2"):
        start(private_entityq, tmp_path, name)
    send(private_entityq, tmp_path, "paced", 80)
    private_journal.until("start", 15)
    private_servers.valkey.kill()
    private_journal.until("start", 80)
    starts = private_journal.starts()
    assert len({line.number for line in starts}) == 80
    require_pace(starts, bursts=3)


def test_no_more_run_at_once_in_the_cluster_and_a_killed_runner_gives_its_permits_back(
    entityq: CommandLine, journal: Journal, tmp_path: Path
) -> None:
    workers = [start(entityq, tmp_path, name) for name in ("w1", "w2")]
    send(entityq, tmp_path, "held", 24)
    journal.until("start", 2)
    killed = {child.pid for child in psutil.Process(workers[0].pid).children(recursive=True)}
    if not killed & {line.pid for line in journal.starts()}:
        workers.reverse()
        killed = {child.pid for child in psutil.Process(workers[0].pid).children(recursive=True)}
    ((before,),) = journal.sql.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
    workers[0].kill()
    (tmp_path / "gate").touch()
    journal.until("end", 24)
    running: set[tuple[int, int]] = set()
    for line in journal.lines():
        if line.at > cast("float", before):
            running = {one for one in running if one[1] not in killed}
        one = line.number, line.pid
        if line.kind == "end":
            running.discard(one)
        else:
            running.add(one)
            assert len(running) <= 2, "\n".join(map(str, journal.lines()))
