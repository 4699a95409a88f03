"""A web server as a process of its own, and a worker as another one."""

import signal
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.support.processes import CommandLine, Running

Serve = Callable[..., httpx.Client]


@pytest.fixture
def worker(entityq: CommandLine) -> Iterator[Running]:
    running = entityq.spawn("worker", "-A", "examples.bank:app", "-c", "1")
    yield running
    running.terminate()
    assert running.wait().code == 0, running


@pytest.fixture
def serve(entityq: CommandLine) -> Iterator[Serve]:
    """Starts a server, by module and arguments, and gives an HTTP client for it. INT stops it at the end."""
    started: list[tuple[Running, httpx.Client]] = []

    def start(*command: str, **environment: str) -> httpx.Client:
        running = entityq.spawn_program([sys.executable, "-m", *command], env=environment)
        port = running.wait_for(r"(?i)running on http://127\.0\.0\.1:(\d+)")[1]
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        started.append((running, client))
        return client

    yield start
    for running, client in started:
        client.close()
        running.signal(signal.SIGINT)
        assert running.wait().code == 0, running
