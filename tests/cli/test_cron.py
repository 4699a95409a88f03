"""`entityq cron`."""

import re
from pathlib import Path

from tests.cli.workers import start_worker, write_app
from tests.support.processes import CommandLine
from tests.support.waiting import eventually

APP = """
@app.cron("0 0 29 2 *", timezone="Europe/Berlin", name="leap")
@app.task
async def leap_day() -> str:
    return "leapt"
"""


def test_listed_run_paused_and_resumed(entityq: CommandLine, tmp_path: Path) -> None:
    app = write_app(tmp_path, APP)
    assert entityq.run("cron", "list", "-j").json() == {"schedules": []}
    worker = start_worker(entityq, app=app, cwd=tmp_path)
    assert re.search(r"tasks +leap_day\n +schedules +leap\n", worker.stdout)
    assert "_cron" not in worker.stdout

    request_id = entityq.run("cron", "run", "leap", "-A", app, cwd=tmp_path).stdout.strip()
    assert re.fullmatch(r"\d+", request_id)
    reply = eventually(lambda: entityq.run("result", request_id).stdout, 20, "the reply")
    assert reply == '"leapt"\n'

    (listed,) = entityq.run("cron", "list", "-j").json()["schedules"]
    assert re.fullmatch(r"20\d\d-02-28T23:00:00\.000Z", listed.pop("next_at"))
    assert listed.pop("last_at") is not None
    assert listed == {
        "name": "leap",
        "group": "default",
        "expression": "0 0 29 2 *",
        "timezone": "Europe/Berlin",
        "paused": False,
        "last_request": request_id,
        "last_outcome": "success",
        "overlapped": 0,
    }

    assert entityq.run("cron", "pause", "leap", "-A", app, cwd=tmp_path).code == 0
    text = entityq.run("cron", "list").stdout
    assert re.search(r"^leap +0 0 29 2 \* +Europe/Berlin +paused +20\S+ +success$", text, re.MULTILINE)
    again = entityq.run("cron", "run", "leap", "-j", "-A", app, cwd=tmp_path).json()
    assert again["request_id"] != request_id
    assert entityq.run("cron", "resume", "leap", "-A", app, cwd=tmp_path).code == 0
    (listed,) = entityq.run("cron", "list", "-j").json()["schedules"]
    assert (listed["paused"], listed["last_request"]) == (False, again["request_id"])

    unknown = entityq.run("cron", "pause", "nightly", "-A", app, cwd=tmp_path)
    assert (unknown.code, unknown.stderr) == (2, "Error: The app has no schedule nightly. It has: leap.\n")


def test_a_runner_with_other_code(entityq: CommandLine, tmp_path: Path) -> None:
    mine = write_app(tmp_path, APP)
    other = write_app(tmp_path, APP.replace('name="leap"', 'name="other"'), "deployed")
    start_worker(entityq, app=other, cwd=tmp_path)
    refused = entityq.run("cron", "run", "leap", "-A", mine, cwd=tmp_path)
    assert refused.code == 1
    assert "The runner that owns leap has code without it" in refused.stderr
