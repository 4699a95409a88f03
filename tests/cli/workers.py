"""Workers of single tests, and apps that tests write."""

import re
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import ROOT, CommandLine, Running
from tests.support.waiting import eventually

BANK = "examples.bank:app"


def start_worker(
    entityq: CommandLine,
    *arguments: str,
    app: str = BANK,
    runners: int = 1,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> Running:
    """A worker all of whose runners are members of the cluster."""
    worker = entityq.spawn("worker", "-A", app, "-c", str(runners), *arguments, cwd=cwd, env=env)
    wait_joined(worker, runners)
    return worker


def wait_joined(worker: Running, count: int) -> None:
    """Until that many runners have joined in all, those of the past included."""
    try:
        eventually(lambda: joined(worker) >= count, 20, f"{count} joined runners")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{worker}") from None


def joined(worker: Running) -> int:
    return len(re.findall(r"runner\.joined", worker.stderr))


def runner_pids(worker: Running) -> set[int]:
    return {child.pid for child in worker.children if "entityq_cli" in child.cmdline()}


def write_app(directory: Path, text: str, name: str = "shop") -> str:
    """The -A of a module in `directory` with an app."""
    (directory / f"{name}.py").write_text(
        f'from entityq import Entity, EntityQ, message\n\napp = EntityQ("shop")\n{text}'
    )
    return f"{name}:app"
