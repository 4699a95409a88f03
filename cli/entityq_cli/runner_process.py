"""A runner as its worker sees it: a process, and what it has reported."""

import asyncio
import signal
import socket
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from entityq_cli.report import Loaded, Refused, Report, Serving, decode_report

# A banner names every message of every type.
_LINE_LIMIT = 4 * 1024 * 1024
# After the process has ended: for what it reported last.
_LAST_WORDS = 1.0


class RunnerProcess:
    """`settled` is set when it serves, and when it has ended; `ended` when it has ended."""

    def __init__(self, process: Process, link: socket.socket) -> None:
        self._process = process
        self._link = link
        self._started = time.monotonic()
        self._lived = 0.0
        self.serving = False
        self.refused: Refused | None = None
        self.settled = asyncio.Event()
        self.ended = asyncio.Event()

    @classmethod
    async def start(cls, command: Callable[[int], Sequence[str]]) -> Self:
        """`command` takes the file descriptor of the runner's end of the link."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C in a terminal must not end the programs that handlers have started.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Negative: the number of the signal that ended it."""
        return self._process.returncode

    def lived(self) -> float:
        """Seconds from its start to its end."""
        return self._lived

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def watch(self, heard: Callable[["RunnerProcess", Loaded], None]) -> None:
        """Returns when the process has ended and all of its reports are read."""
        try:
            reading = asyncio.create_task(self._read(heard), name=f"reports of {self.pid}")
            try:
                await self._process.wait()
                await asyncio.wait([reading], timeout=_LAST_WORDS)
            finally:
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading
        finally:
            self._link.close()
            self._lived = time.monotonic() - self._started
            self.ended.set()
            self.settled.set()

    async def _read(self, heard: Callable[["RunnerProcess", Loaded], None]) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self._link, limit=_LINE_LIMIT)
        try:
            while line := await reader.readline():
                self._take(decode_report(line), heard)
        except ConnectionResetError:
            pass  # killed with something unread
        finally:
            writer.close()

    def _take(self, report: Report, heard: Callable[["RunnerProcess", Loaded], None]) -> None:
        match report:
            case Loaded():
                heard(self, report)
            case Serving():
                self.serving = True
                self.settled.set()
            case Refused():
                self.refused = report
