"""`entityq cron list`."""

import click

from entityq.postgres.cron import StoredSchedule, read_schedules
from entityq_cli.database import run_in_namespace
from entityq_cli.log_format import configure_logging
from entityq_cli.options import app_option, json_option
from entityq_cli.output import print_json, table, text_time, utc
from entityq_cli.refusal import one_sentence


@click.command("list")
@app_option
@json_option
def command(app: str | None, *, as_json: bool) -> None:
    """List the schedules that runners have begun, by name, with their next instant and how the last run ended.

    They are read from the database: one that no runner has declared yet is not among them, and one that was removed
    from the code is, until its next instant.
    """
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json):
        schedules = run_in_namespace(app, read_schedules)
    if as_json:
        print_json({"schedules": [_document(schedule) for schedule in schedules]})
    else:
        click.echo(_table(schedules))


def _document(schedule: StoredSchedule) -> dict[str, object]:
    return {
        "name": schedule.name,
        "group": schedule.group,
        "expression": schedule.expression,
        "timezone": schedule.timezone,
        "paused": schedule.paused,
        "next_at": utc(schedule.next_at),
        "last_at": utc(schedule.last_at),
        "last_request": None if schedule.last_request is None else str(schedule.last_request),
        "last_outcome": schedule.outcome,
        "overlapped": schedule.overlapped,
    }


def _table(schedules: list[StoredSchedule]) -> str:
    rows = [
        (
            schedule.name,
            schedule.expression,
            schedule.timezone,
            "paused" if schedule.paused else text_time(schedule.next_at),
            text_time(schedule.last_at),
            schedule.outcome or "-",
        )
        for schedule in schedules
    ]
    return table(("NAME", "EXPRESSION", "TIME ZONE", "NEXT", "LAST", "LAST OUTCOME"), rows)
