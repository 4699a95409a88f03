"""`make demo`, on servers of its own: on a fresh machine, and once more."""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from entityq.embedded.flock import is_locked
from entityq.embedded.place import Place
from tests.support.processes import CommandLine
from tests.support.waiting import eventually


@pytest.fixture
def directory() -> Iterator[Path]:
    """Does not exist yet; PostgreSQL's system user can reach it."""
    parent = Path(tempfile.mkdtemp(prefix="entityq-demo-", dir="/tmp"))
    parent.chmod(0o711)
    yield parent / "data"
    shutil.rmtree(parent)


def run_demo(directory: Path, output: Path) -> str:
    output.mkdir()
    with CommandLine({"ENTITYQ_EMBEDDED_DIR": str(directory)}, output) as command_line:
        demo = command_line.spawn_program([sys.executable, "-m", "examples.demo"])
        finished = demo.wait(60)
        assert finished.code == 0, demo
        eventually(lambda: not is_locked(Place(directory).keeper), 20, "the end of the servers")
        return finished.stdout


def test_the_demo_twice(directory: Path, tmp_path: Path) -> None:
    require_success(run_demo(directory, tmp_path / "first"))
    said = run_demo(directory, tmp_path / "second")
    require_success(said)


def require_success(said: str) -> None:
    assert re.findall(r"account\.deposit\(10, .*\n +-> (.*)", said) == ["10", "10"]
    assert "PrimaryKeyConflict: Account/demo-" in said
    assert "InsufficientFunds(balance=10)" in said
    assert re.findall(r"sum of the balances\n +-> (\d+)", said) == ["1000", "1000"]
    assert said.rstrip().splitlines()[-1].startswith("Done.")
