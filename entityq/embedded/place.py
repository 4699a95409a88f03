"""Where the embedded servers live: every path below one directory, and the system user that may read them."""

import hashlib
import os
import pwd
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from entityq.errors import UnsafeConfiguration

SERVICE_USER = "entityq"

# sockaddr_un holds 103 bytes on macOS and 107 on Linux; the longest name in the directory is Postgres's.
_SOCKET_PATH_LIMIT = 103
_LONGEST_SOCKET_NAME = ".s.PGSQL.5432.lock"


@dataclass(frozen=True, slots=True)
class ServiceUser:
    """Who PostgreSQL runs as when entityq runs as root, because PostgreSQL refuses to run as root."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Place:
    """The directory of one pair of servers."""

    directory: Path

    @property
    def users(self) -> Path:
        """Every user process holds a shared lock on this file for as long as it lives."""
        return self.directory / "users.lock"

    @property
    def starting(self) -> Path:
        """Locked by the one process that decides whether a keeper must be started."""
        return self.directory / "starting.lock"

    @property
    def keeper(self) -> Path:
        """Locked by the keeper for its whole life."""
        return self.directory / "keeper.lock"

    @property
    def ready(self) -> Path:
        """The URLs as JSON; exists from readiness of both servers until the keeper stops them."""
        return self.directory / "servers.json"

    @property
    def log(self) -> Path:
        return self.directory / "keeper.log"

    @property
    def postgres(self) -> Path:
        return self.directory / "postgres"

    @property
    def valkey(self) -> Path:
        return self.directory / "valkey"

    @property
    def sockets(self) -> Path:
        """Below the directory, or in /tmp under a name derived from it where that would be too long.

        Always the same for the same directory, so that a keeper finds the servers of one that was killed.
        A comma would be read as a list of directories by PostgreSQL and libpq.
        """
        near = self.directory / "run"
        longest = os.fsencode(near / _LONGEST_SOCKET_NAME)
        if len(longest) <= _SOCKET_PATH_LIMIT and "," not in str(near):
            return near
        digest = hashlib.blake2b(os.fsencode(self.directory), digest_size=8).hexdigest()
        return Path("/") / "tmp" / f"entityq-{os.geteuid()}-{digest}"


def default_directory() -> Path:
    """In the user's data directory.

    Root's own lies below a home that PostgreSQL's system user cannot enter, so root gets /var/lib/entityq.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/entityq")
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "entityq"


def service_user() -> ServiceUser | None:
    """The system user for PostgreSQL, created on first use; None unless this process runs as root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVICE_USER]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            raise UnsafeConfiguration(
                f"PostgreSQL does not run as root, and the system user {SERVICE_USER!r} could not be created "
                f"({error}).",
                advice="Create it, or run entityq as an ordinary user.",
            ) from error
        entry = pwd.getpwnam(SERVICE_USER)
    return ServiceUser(entry.pw_uid, entry.pw_gid)


def private(path: Path, user: ServiceUser | None, *, owned: bool) -> None:
    """Creates `path` for this user (and the service user) alone.

    `owned`: the service user owns it and may write; otherwise it may only enter.
    An existing directory keeps its permissions, but must not belong to somebody else.
    """
    if not os.path.lexists(path):
        _create(path, user, owned=owned)
    owners = {os.geteuid(), user.uid if user else os.geteuid()}
    if path.is_symlink() or not path.is_dir() or path.stat().st_uid not in owners:
        raise UnsafeConfiguration(
            f"{path} exists and is not a directory of this user.",
            advice="Remove it, or choose another directory with ENTITYQ_EMBEDDED_DIR.",
        )


def _create(path: Path, user: ServiceUser | None, *, owned: bool) -> None:
    """Renamed into its place when it is ready: another process must not meet it without its permissions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))  # mode 0700
    if user is not None:
        os.chown(fresh, user.uid if owned else 0, user.gid)
        fresh.chmod(0o700 if owned else 0o750)
    try:
        fresh.rename(path)
    except OSError:  # another process was faster, and its directory is in use
        fresh.rmdir()


def may_enter(path: Path, user: ServiceUser) -> bool:
    """Whether `user` can reach what lies in `path`: it needs the right to search it and all its parents."""
    return all(_searchable(part.stat(), user) for part in [path, *path.parents])


def _searchable(status: os.stat_result, user: ServiceUser) -> bool:
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
