"""`entityq dev`: embedded servers, migrated, and a worker that reloads."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from entityq.embedded.flock import is_locked
from entityq.embedded.place import Place
from tests.cli.workers import joined, runner_pids, wait_joined, write_app
from tests.support.processes import CommandLine, Running
from tests.support.waiting import eventually

TASK = "@app.task\ndef version() -> int:\n    return {}\n"


def start_dev(entityq: CommandLine, app: str, directory: Path, env: dict[str, str] | None = None) -> Running:
    dev = entityq.spawn("dev", "-A", app, cwd=directory, env=env)
    dev.wait_for(r"worker\.started|worker\.refused")
    return dev


def version(entityq: CommandLine, app: str, directory: Path, env: dict[str, str] | None = None) -> str:
    return entityq.run("send", "-A", app, "version", "--wait", cwd=directory, env=env).stdout


def test_a_changed_file_is_loaded_and_a_broken_one_is_not(entityq: CommandLine, tmp_path: Path) -> None:
    app = write_app(tmp_path, TASK.format(1))
    dev = start_dev(entityq, app, tmp_path)
    wait_joined(dev, 1)
    assert version(entityq, app, tmp_path) == "1\n"

    write_app(tmp_path, "def\n")
    dev.wait_for("worker.restart_given_up")
    assert "Importing shop failed: SyntaxError" in dev.stderr
    assert joined(dev) == 1

    write_app(tmp_path, TASK.format(2))
    dev.wait_for("worker.restarted")
    assert version(entityq, app, tmp_path) == "2\n"
    assert len(runner_pids(dev)) == 1

    dev.signal(signal.SIGINT)
    assert dev.wait().code == 0


def test_a_broken_app_is_waited_for(entityq: CommandLine, tmp_path: Path) -> None:
    app = write_app(tmp_path, "def\n")
    dev = start_dev(entityq, app, tmp_path)

    write_app(tmp_path, TASK.format(1))

    wait_joined(dev, 1)
    assert "Traceback" not in dev.stderr
    dev.terminate()
    assert dev.wait().code == 0


@pytest.fixture
def embedded_directory() -> Iterator[Path]:
    """That PostgreSQL's system user can reach; no keeper stays."""
    parent = Path(tempfile.mkdtemp(prefix="entityq-test-", dir="/tmp"))
    parent.chmod(0o711)
    path = parent / "data"
    yield path
    eventually(lambda: not is_locked(Place(path).keeper), 20, "the end of the keeper")
    shutil.rmtree(parent)


def test_embedded_servers_are_started_migrated_and_stopped(
    entityq: CommandLine, tmp_path: Path, embedded_directory: Path
) -> None:
    app = write_app(tmp_path, TASK.format(1))
    env = {
        "ENTITYQ_POSTGRES_URL": "",
        "ENTITYQ_REDIS_URL": "",
        "ENTITYQ_NAMESPACE": "",
        "ENTITYQ_EMBEDDED_DIR": str(embedded_directory),
    }
    dev = start_dev(entityq, app, tmp_path, env)
    wait_joined(dev, 1)

    assert version(entityq, app, tmp_path, {**env, "ENTITYQ_EMBEDDED": "1"}) == "1\n"
    dev.terminate()
    assert dev.wait().code == 0
