"""Databases of single tests, and servers that a test may kill, freeze and restart."""

import asyncio
import os
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit, urlunsplit

import psutil
import psycopg
from psycopg import sql

from entityq.embedded import Embedded
from entityq.embedded.place import Place, service_user
from entityq.embedded.postgres import PostgresServer
from entityq.embedded.valkey import ValkeyServer
from entityq.postgres.connect import connect
from entityq.postgres.migrate import migrate
from tests.support.waiting import eventually

Connection = psycopg.Connection[tuple[object, ...]]

SCHEMA = "entityq"
# Fewer than the default, so that a test can look at all of them.
SHARDS = 16


def database_url(url: str, database: str) -> str:
    """The same server, another database. (With an empty host the URL must keep both slashes.)"""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def create_database(server: Connection, name: str, template: str) -> None:
    """From an empty or migrated template, which nobody may be connected to."""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    server.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))


def drop_database(server: Connection, name: str) -> None:
    server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def migrate_database(url: str, namespace: str) -> None:
    """Applies what is missing, and makes the cluster of a namespace. Not inside a running loop."""
    asyncio.run(_migrate(url, namespace))


async def _migrate(url: str, namespace: str) -> None:
    async with await connect(url, schema=SCHEMA, application_name="tests") as connection:
        await migrate(connection, schema=SCHEMA, namespace=namespace, shards=SHARDS)


def left_behind(server: Connection, database: str, seconds: float = 2.0) -> list[str]:
    """Sessions of entityq and advisory locks in a database, after some time for closed sessions to end."""
    found: list[str] = []

    def nothing() -> bool:
        sessions = server.execute(
            "SELECT concat_ws(' ', 'session', application_name, state, query) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name LIKE 'entityq%%'",
            [database],
        ).fetchall()
        locks = server.execute(
            "SELECT concat_ws(' ', 'advisory lock', classid, objid, 'of pid', pid) FROM pg_locks"
            " WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = %s)",
            [database],
        ).fetchall()
        found[:] = [str(row[0]) for row in sessions + locks]
        return not found

    try:
        eventually(nothing, seconds)
    except AssertionError:
        return found
    return []


class Killable:
    """The faults of one server process and its children."""

    def __init__(self, server: PostgresServer | ValkeyServer) -> None:
        self._server = server

    def is_alive(self) -> bool:
        try:
            return psutil.pid_exists(self._server.pid)
        except FileNotFoundError:
            return False

    def processes(self) -> list[psutil.Process]:
        main = psutil.Process(self._server.pid)
        return [main, *main.children(recursive=True)]

    def kill(self) -> None:
        """kill -9, and waits for the end."""
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _signal(self, number: signal.Signals) -> None:
        processes = self.processes()
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        if number == signal.SIGKILL:
            # Until they are reaped: PostgreSQL does not start while a zombie has its old process id.
            _, alive = psutil.wait_procs(processes[:1], timeout=10)
            assert not alive


class PrivateServers:
    """A test's own PostgreSQL and Valkey: `servers.valkey.kill()`, `servers.postgres.restart()`, ..."""

    def __init__(self, embedded: Embedded) -> None:
        place = Place(embedded.directory)
        self.postgres_url = embedded.postgres_url
        self.redis_url = embedded.redis_url
        self.postgres = Killable(PostgresServer(place.postgres, place.sockets, service_user()))
        self.valkey = Killable(ValkeyServer(place.valkey, place.sockets))

    def flush(self) -> None:
        flush(self.redis_url)

    def thaw(self) -> None:
        """Whatever is frozen; a frozen server could not be stopped."""
        for server in (self.postgres, self.valkey):
            if server.is_alive():
                server.thaw()


@contextmanager
def connected(url: str) -> Generator[Connection]:
    with psycopg.connect(url, autocommit=True, application_name="tests") as connection:
        yield connection


def flush(redis_url: str) -> None:
    """FLUSHALL, through the socket: nothing of redis-py is needed, or typed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(unquote(urlsplit(redis_url).path))
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(16).startswith(b"+OK")


def child_processes() -> set[psutil.Process]:
    return set(psutil.Process(os.getpid()).children(recursive=True))
