"""Running the `entityq` command as a real process."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
ENTITYQ = str(Path(sys.executable).with_name("entityq"))


# What a spawned process has at the end of its test, before it is killed.
_LAST_SECONDS = 0.7


@dataclass(frozen=True, slots=True)
class Finished:
    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        return json.loads(self.stdout)


class Running:
    """A started process in a session of its own, its output in files."""

    def __init__(self, command: list[str], environment: Mapping[str, str], cwd: Path, output: Path) -> None:
        self.command = command
        self._stdout = output.with_suffix(".stdout")
        self._stderr = output.with_suffix(".stderr")
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def children(self) -> list[psutil.Process]:
        """All processes below this one, such as a worker's runners."""
        return psutil.Process(self.pid).children(recursive=True)

    def wait_for(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """Waits until stdout or stderr matches; fails early, with the output, when the process ends first."""

        def found() -> re.Match[str] | None:
            ended = self._process.poll() is not None
            match = re.search(pattern, self.stdout) or re.search(pattern, self.stderr)
            if match is None and ended:
                raise AssertionError(f"ended with {self._process.returncode} before {pattern!r}\n{self}")
            return match

        try:
            match = eventually(found, timeout, f"output {pattern!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self}") from None
        assert match is not None
        return match

    def signal(self, number: signal.Signals) -> None:
        """To this process alone; `kill` reaches its children, too."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9 for the process and all its children, a worker's runners included, and waits for them."""
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            children = self.children
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        for child in children:  # in sessions of their own
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=10)

    def ended(self, timeout: float) -> None:
        """Raises subprocess.TimeoutExpired when it has not ended by then."""
        self._process.wait(timeout)

    def wait(self, timeout: float = 30.0) -> Finished:
        """Waits for the end; kills it and fails after `timeout`."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {timeout:g} s\n{self}") from None
        return Finished(code, self.stdout, self.stderr)

    def __str__(self) -> str:
        command = " ".join(self.command)
        return f"$ {command}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class CommandLine:
    """`entityq` with a test's own configuration. Whatever it spawned is ended at the end."""

    def __init__(self, configuration: Mapping[str, str], output: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ENTITYQ_")}
        self.environment = {**inherited, "PYTHONUNBUFFERED": "1", **configuration}
        self._output = output
        self._spawned: list[Running] = []

    def spawn(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Running:
        return self.spawn_program([ENTITYQ, *arguments], env=env, cwd=cwd)

    def spawn_program(
        self, command: list[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> Running:
        """Any other program with the same configuration in its environment."""
        output = self._output / f"process-{len(self._spawned)}"
        running = Running(command, {**self.environment, **(env or {})}, cwd, output)
        self._spawned.append(running)
        return running

    def run(
        self, *arguments: str, timeout: float = 30.0, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> Finished:
        return self.spawn(*arguments, env=env, cwd=cwd).wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A worker that ends by itself leaves its sessions at once; Postgres notices killed ones after up to 2 s.
        for running in self._spawned:
            running.terminate()
        for running in self._spawned:
            with suppress(subprocess.TimeoutExpired):
                running.ended(_LAST_SECONDS)
            running.kill()
