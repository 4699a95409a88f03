"""A directory for embedded servers, and processes that use it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from entityq.embedded.flock import is_locked
from entityq.embedded.place import Place
from tests.support.processes import ROOT, Running
from tests.support.waiting import eventually

# Starts, says so, runs the statements in its arguments, and waits to be killed.
USER = """
import signal, sys
from pathlib import Path
from entityq.embedded import start
embedded = start(Path(sys.argv[1]))
print("ready", embedded.postgres_url, embedded.redis_url, flush=True)
for statement in sys.argv[2:]:
    exec(statement)
signal.pause()
"""

StartUser = Callable[..., Running]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that does not exist yet, which PostgreSQL's system user can reach; no keeper stays."""
    parent = Path(tempfile.mkdtemp(prefix="entityq-test-", dir="/tmp"))
    parent.chmod(0o711)
    path = parent / "data"
    yield path
    if path.exists():
        eventually(lambda: not is_locked(Place(path).keeper), 20, "the end of the keeper")
    shutil.rmtree(parent)


@pytest.fixture
def start_user(directory: Path, tmp_path: Path) -> Iterator[StartUser]:
    """`start_user(*statements)`: a process that uses the servers in `directory`."""
    users: list[Running] = []

    def start(*statements: str) -> Running:
        command = [sys.executable, "-c", USER, str(directory), *statements]
        users.append(Running(command, os.environ, ROOT, tmp_path / f"user-{len(users)}"))
        return users[-1]

    yield start
    for user in users:
        user.kill()
