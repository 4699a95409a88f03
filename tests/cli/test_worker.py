"""The worker as a real process: start, signals, crashes, refusals."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.cli.workers import BANK, joined, runner_pids, start_worker, wait_joined, write_app
from tests.support.processes import CommandLine
from tests.support.servers import PrivateServers
from tests.support.waiting import eventually

# A turn that says when it runs, and ends when the test removes the file (or never).
HANGING = """
import asyncio
from pathlib import Path

@app.task
async def hang(file: str) -> str:
    Path(file).write_text("running")
    while Path(file).exists():
        await asyncio.sleep(0.01)
    return "ended"

@app.task
def program(file: str) -> str:
    import subprocess
    subprocess.run(["sh", "-c", f"touch {file}; while test -e {file}; do sleep 0.01; done"], check=True)
    return "ended"

@app.task
def block(file: str) -> str:
    import time
    Path(file).write_text("running")
    while Path(file).exists():
        time.sleep(0.01)
    return "ended"
"""


def hang(entityq: CommandLine, directory: Path, task: str = "hang") -> tuple[Path, str]:
    """A turn that runs; its file, and its request id."""
    file = directory / "running"
    sent = entityq.run("send", "-A", "shop:app", task, "-a", json.dumps([str(file)]), cwd=directory)
    assert sent.code == 0, sent.stderr
    eventually(file.exists, 10, "a running turn")
    return file, sent.stdout.strip()


def result(entityq: CommandLine, request_id: str) -> str:
    found = entityq.run("result", request_id, "-j")
    return str(found.json()["outcome"])


def no_process_left(pids: set[int]) -> None:
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), 15, "the end of all runners")


def test_the_banner_shows_what_runs_and_no_secret(entityq: CommandLine) -> None:
    worker = start_worker(entityq, "-n", "%p-of-two", runners=2)

    worker.terminate()
    finished = worker.wait()

    assert finished.code == 0
    banner = finished.stdout
    for pattern in (
        r"app +examples\.bank:app",
        r"namespace +test-",
        r"postgres +postgresql://\*\*\*@",
        r"redis +(redis|unix)://",
        r"processes +2 \(1-of-two to 2-of-two\)",
        r"groups +all",
        r"entities +Account: deposit, withdraw, read",
        r"tasks +add",
    ):
        assert re.search(pattern, banner), pattern
    assert "name=1-of-two" in finished.stderr
    assert "name=2-of-two" in finished.stderr


def test_a_requests_round_trip_through_two_runners(entityq: CommandLine) -> None:
    start_worker(entityq, runners=2)

    replies = [
        entityq.run("send", "-A", BANK, f"Account/{name}", "deposit", "-a", '[5, "r1"]', "--wait").stdout
        for name in ("a", "b", "c", "a")
    ]

    assert replies == ["5\n"] * 4


def test_lines_as_json(entityq: CommandLine) -> None:
    worker = start_worker(entityq, "--log-format", "json")
    worker.terminate()
    finished = worker.wait()

    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    assert finished.stdout == ""
    assert {"worker", "runner-1"} == {line["process"] for line in lines}
    (event,) = [line for line in lines if line.get("event") == "runner.joined"]
    assert event["facts"]["incarnation"].isdecimal()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_waits_for_running_turns(
    entityq: CommandLine, tmp_path: Path, number: signal.Signals
) -> None:
    worker = start_worker(entityq, app=write_app(tmp_path, HANGING), cwd=tmp_path)
    file, request_id = hang(entityq, tmp_path)

    worker.signal(number)
    worker.wait_for("worker.stopping stage=drain")
    file.unlink()
    finished = worker.wait()

    assert finished.code == 0
    assert "worker.stopped exit=0" in finished.stderr
    assert result(entityq, request_id) == "success"


def test_ctrl_c_in_a_terminal_drains_and_spares_the_programs_of_handlers(
    entityq: CommandLine, tmp_path: Path
) -> None:
    worker = start_worker(entityq, app=write_app(tmp_path, HANGING), cwd=tmp_path)
    file, request_id = hang(entityq, tmp_path, "program")

    os.killpg(worker.pid, signal.SIGINT)
    worker.wait_for("worker.stopping stage=drain")
    file.unlink()

    assert worker.wait().code == 0
    assert result(entityq, request_id) == "success"


def test_a_service_manager_signals_every_process_and_it_drains(entityq: CommandLine, tmp_path: Path) -> None:
    worker = start_worker(entityq, app=write_app(tmp_path, HANGING), cwd=tmp_path)
    file, request_id = hang(entityq, tmp_path)

    for pid in runner_pids(worker):
        os.kill(pid, signal.SIGTERM)
    worker.terminate()
    worker.wait_for("worker.stopping stage=drain")
    file.unlink()

    assert worker.wait().code == 0
    assert result(entityq, request_id) == "success"


@pytest.mark.parametrize("task", ["hang", "block"])
def test_the_second_signal_stops_cold_and_the_request_stays_accepted(
    entityq: CommandLine, tmp_path: Path, task: str
) -> None:
    app = write_app(tmp_path, HANGING)
    worker = start_worker(entityq, app=app, cwd=tmp_path)
    file, request_id = hang(entityq, tmp_path, task)

    worker.terminate()
    worker.wait_for("worker.stopping stage=drain")
    worker.terminate()
    finished = worker.wait(timeout=10)

    assert finished.code == 1
    assert "worker.stopping stage=cold" in finished.stderr
    assert result(entityq, request_id) == "pending"

    file.unlink()  # written again by the turn's next run, which another worker starts
    start_worker(entityq, app=app, cwd=tmp_path)
    eventually(file.exists, 10, "the second run")
    file.unlink()
    eventually(lambda: result(entityq, request_id) == "success", 10, "the reply")


@pytest.mark.parametrize("task", ["hang", "block"])
def test_a_turn_that_outlives_the_termination_time_is_left_to_others(
    entityq: CommandLine, tmp_path: Path, task: str
) -> None:
    env = {"ENTITYQ_TERMINATION_TIME": "0.3"}
    worker = start_worker(entityq, app=write_app(tmp_path, HANGING), cwd=tmp_path, env=env)
    _, request_id = hang(entityq, tmp_path, task)

    worker.terminate()

    assert worker.wait(timeout=10).code == 0
    assert result(entityq, request_id) == "pending"


def test_quit_stops_cold(entityq: CommandLine, tmp_path: Path) -> None:
    worker = start_worker(entityq, app=write_app(tmp_path, HANGING), cwd=tmp_path)
    _, request_id = hang(entityq, tmp_path)

    worker.signal(signal.SIGQUIT)

    assert worker.wait(timeout=10).code == 1
    assert result(entityq, request_id) == "pending"


def test_the_third_signal_kills(entityq: CommandLine, tmp_path: Path) -> None:
    worker = start_worker(entityq, app=write_app(tmp_path, HANGING), cwd=tmp_path)
    pids = runner_pids(worker)
    for pid in pids:  # a frozen one does not hear the first two
        os.kill(pid, signal.SIGSTOP)

    for stage in ("drain", "cold", "hard"):
        worker.terminate()
        worker.wait_for(f"worker.stopping stage={stage}")

    assert worker.wait(timeout=10).code == 1
    no_process_left(pids)


def test_a_killed_runner_is_replaced(entityq: CommandLine) -> None:
    worker = start_worker(entityq, runners=2)
    before = runner_pids(worker)
    victim = min(before)

    os.kill(victim, signal.SIGKILL)
    wait_joined(worker, 3)

    assert len(runner_pids(worker)) == 2
    assert before - {victim} < runner_pids(worker)
    assert f"pid={victim} exit=-9" in worker.stderr


def test_runners_drain_when_their_worker_is_killed(entityq: CommandLine, tmp_path: Path) -> None:
    worker = start_worker(entityq, app=write_app(tmp_path, HANGING), cwd=tmp_path, runners=2)
    file, request_id = hang(entityq, tmp_path)
    pids = runner_pids(worker)

    worker.signal(signal.SIGKILL)
    eventually(lambda: "runner.worker_gone" in worker.stderr, 5, "the runners' notice")
    file.unlink()

    no_process_left(pids)
    assert result(entityq, request_id) == "success"


def test_hup_replaces_the_runners_one_after_the_other(entityq: CommandLine) -> None:
    worker = start_worker(entityq, runners=2)
    before = runner_pids(worker)

    worker.signal(signal.SIGHUP)
    worker.wait_for("worker.restarted runners=2")

    assert joined(worker) == 4
    after = runner_pids(worker)
    assert len(after) == 2 and not before & after


def test_hup_with_code_that_does_not_load_keeps_the_old_runners(entityq: CommandLine, tmp_path: Path) -> None:
    worker = start_worker(entityq, app=write_app(tmp_path, HANGING), cwd=tmp_path)
    before = runner_pids(worker)

    write_app(tmp_path, "nothing\n")
    worker.signal(signal.SIGHUP)
    worker.wait_for("worker.restart_given_up")

    assert runner_pids(worker) == before


def test_usr1_shows_the_stacks_of_worker_and_runners(entityq: CommandLine) -> None:
    worker = start_worker(entityq)

    worker.signal(signal.SIGUSR1)

    worker.wait_for("entityq_cli/supervisor.py")
    worker.wait_for("entityq_cli/runner.py")
    worker.terminate()
    assert worker.wait().code == 0


def test_term_while_the_app_is_imported_ends_at_once(offline: CommandLine, tmp_path: Path) -> None:
    imported = tmp_path / "imported"
    app = write_app(
        tmp_path, f"import pathlib, time\npathlib.Path({str(imported)!r}).touch()\ntime.sleep(60)\n"
    )
    worker = offline.spawn("worker", "-A", app, "-c", "1", cwd=tmp_path)
    eventually(imported.exists, 10, "the import")

    worker.terminate()

    assert worker.wait(timeout=5).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("-A", "nowhere:app"), 2, "There is no module nowhere"),
        (("-A", BANK, "-Q", "billing"), 2, "No entity type of the app is in shard group billing"),
        (("-A", BANK, "-n", "runner%x"), 2, "The name 'runner%x' has %x"),
    ],
)
def test_what_cannot_start_ends_the_worker_with_one_sentence(
    offline: CommandLine, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    finished = offline.run("worker", "-c", "2", *arguments)

    assert finished.code == code
    assert finished.stderr.startswith(f"Error: {sentence}")
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("Error: ") == 1
    assert " ERROR " not in finished.stderr


def test_a_database_without_schema_ends_the_worker(entityq: CommandLine, empty_postgres_url: str) -> None:
    finished = entityq.run("worker", "-A", BANK, env={"ENTITYQ_POSTGRES_URL": empty_postgres_url})

    assert finished.code == 1
    assert "Error: Schema entityq of this database has no entityq tables" in finished.stderr
    assert "Run `entityq migrate`." in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_worker_that_starts_before_its_servers_waits_for_them(
    entityq: CommandLine, private_servers: PrivateServers
) -> None:
    env = {
        "ENTITYQ_POSTGRES_URL": private_servers.postgres_url,
        "ENTITYQ_REDIS_URL": private_servers.redis_url,
    }
    private_servers.postgres.kill()
    worker = entityq.spawn("worker", "-A", BANK, "-c", "1", env=env)
    worker.wait_for("runner.waiting_for_servers: Cannot connect to Postgres at .* Trying again")
    assert "Traceback" not in worker.stderr

    private_servers.postgres.start()

    wait_joined(worker, 1)
    worker.terminate()
    assert worker.wait().code == 0


def test_a_worker_that_waits_for_its_servers_can_be_stopped(entityq: CommandLine) -> None:
    env = {"ENTITYQ_POSTGRES_URL": "postgresql://nobody:secret@127.0.0.1:1/nothing"}
    worker = entityq.spawn("worker", "-A", BANK, "-c", "1", env=env)
    worker.wait_for("runner.waiting_for_servers")

    worker.terminate()
    finished = worker.wait(timeout=5)

    assert finished.code == 0
    assert "secret" not in finished.stderr + finished.stdout


def test_a_crashing_app_is_restarted_with_growing_pauses(offline: CommandLine, tmp_path: Path) -> None:
    app = write_app(tmp_path, "import os\nos._exit(7)\n")
    worker = offline.spawn("worker", "-A", app, "-c", "1", cwd=tmp_path)

    for pause in ("0.0", "0.1", "0.2", "0.4"):
        worker.wait_for(rf"worker\.runner_ended .* exit=7: starting another one in {pause} s")
    worker.terminate()

    assert worker.wait(timeout=5).code == 0


def test_stderr_and_stdout_of_handlers_are_the_workers(entityq: CommandLine, tmp_path: Path) -> None:
    app = write_app(tmp_path, "@app.task\ndef say() -> None:\n    print('said', flush=True)\n")
    (tmp_path / "click.py").write_text("raise ImportError('not the one that is meant')")
    worker = start_worker(entityq, app=app, cwd=tmp_path)

    sent = entityq.run("send", "-A", app, "say", "--wait", cwd=tmp_path)

    assert sent.code == 0, sent.stderr
    worker.wait_for("said")


def test_the_app_may_run_an_event_loop_while_it_is_imported(entityq: CommandLine, tmp_path: Path) -> None:
    app = write_app(tmp_path, "import asyncio\nasyncio.run(asyncio.sleep(0))\n")

    start_worker(entityq, app=app, cwd=tmp_path)


def test_python_m_is_the_same_command(offline: CommandLine) -> None:
    finished = offline.spawn_program([sys.executable, "-m", "entityq_cli", "--version"]).wait()

    assert finished.stdout.startswith("entityq ")
