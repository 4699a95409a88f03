"""A pooler in front of a private PostgreSQL."""

import os
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from tests.support.servers import PrivateServers, connected
from tests.support.waiting import eventually


def listen_on_tcp(servers: PrivateServers) -> str:
    """Restarts the server, and returns its URL: the embedded ones have a Unix socket only."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with connected(servers.postgres_url) as owner:
        owner.execute("ALTER SYSTEM SET listen_addresses = '127.0.0.1'")
        owner.execute(f"ALTER SYSTEM SET port = {port}".encode())
    servers.postgres.restart()
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


@contextmanager
def pgbouncer(url: str, directory: Path, *, mode: str, round_robin: int = 0) -> Generator[str]:
    """A pooler in front of a server, on a Unix socket."""
    server = conninfo_to_dict(url)
    directory.chmod(0o777)
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\nbank = host={server['host']} port={server['port']} "
        f"dbname={server['dbname']} user=postgres\n"
        f"[pgbouncer]\nlisten_port = 6432\nunix_socket_dir = {directory}\nlisten_addr =\n"
        f"auth_type = any\npool_mode = {mode}\nserver_round_robin = {round_robin}\n"
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with subprocess.Popen(["pgbouncer", "-q", *user, str(directory / "pgbouncer.ini")]) as process:
        try:
            eventually((directory / ".s.PGSQL.6432").exists)
            yield f"postgresql://postgres@/bank?host={directory}&port=6432"
        finally:
            process.terminate()
            process.wait(10)
