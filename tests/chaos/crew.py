"""The processes of a run: workers and producers, each behind network links of its own."""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.deck import LEASE_TIME
from tests.support.fault_proxy import FaultProxy
from tests.support.processes import ENTITYQ, ROOT, Running


@dataclass(frozen=True, slots=True)
class Links:
    """The way of one process to the servers."""

    postgres: FaultProxy
    redis: FaultProxy

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ENTITYQ_")}
        return {
            **inherited,
            "ENTITYQ_POSTGRES_URL": self.postgres.url,
            "ENTITYQ_REDIS_URL": self.redis.url,
            "ENTITYQ_NAMESPACE": "chaos",
            "ENTITYQ_LEASE_TIME": str(LEASE_TIME),
            "ENTITYQ_SWEEP_INTERVAL": "1",
            "ENTITYQ_TERMINATION_TIME": "5",
            "PYTHONUNBUFFERED": "1",
        }


@dataclass(slots=True)
class Worker:
    """A place where one worker after the other runs: "w1" has w1-1, w1-2, ... `killed` are the runners that a
    fault has killed, `seen` are all that it ever had."""

    name: str
    links: Links
    directory: Path
    lives: list[Running] = field(default_factory=list[Running])
    killed: set[int] = field(default_factory=set[int])
    seen: set[psutil.Process] = field(default_factory=set[psutil.Process])

    def start(self) -> None:
        name = f"{self.name}-{len(self.lives) + 1}"
        command = [ENTITYQ, "worker", "-A", "tests.chaos.ledger:app", "-c", "1", "-n", name]
        command += ["-l", "info", "--log-format", "json"]
        self.lives.append(Running(command, self.links.environment(), ROOT, self.directory / name))

    @property
    def process(self) -> Running:
        return self.lives[-1]

    def runners(self) -> list[psutil.Process]:
        """Those that run now; during a rolling restart there are two."""
        runners = children(self.process.pid) if self.lives else []
        self.seen.update(runners)
        return runners

    def signal_runners(self, number: signal.Signals) -> None:
        for runner in self.runners():
            if number == signal.SIGKILL:
                self.killed.add(runner.pid)
            _send(runner, number)

    def left(self) -> list[psutil.Process]:
        """Runners that have outlived their worker, and have not ended yet."""
        return [runner for runner in self.seen if runner.is_running() and not _ended(runner)]


@dataclass(slots=True)
class Producer:
    """The same of a producer; each life has a history of its own."""

    name: str
    links: Links
    directory: Path
    seed: int
    started: float
    lives: list[Running] = field(default_factory=list[Running])
    histories: list[Path] = field(default_factory=list[Path])

    def start(self) -> None:
        name = f"{self.name}-{len(self.lives) + 1}"
        predecessors = [str(path) for path in self.histories if path.exists()]
        self.histories.append(self.directory / f"{name}.history")
        command = [sys.executable, "-m", "tests.chaos.producer", "--name", name]
        command += ["--history", str(self.histories[-1]), "--seed", str(self.seed)]
        command += ["--started", str(self.started), *predecessors]
        self.lives.append(Running(command, self.links.environment(), ROOT, self.directory / name))

    @property
    def process(self) -> Running:
        return self.lives[-1]


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _ended(process: psutil.Process) -> bool:
    """Also one whose parent has not asked for its exit code yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
