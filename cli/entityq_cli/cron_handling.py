"""What the commands that change a schedule have in common."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from entityq import EntityQ, UnknownSchedule
from entityq.schedules import Schedules
from entityq_cli.app_loading import load_app
from entityq_cli.exit_code import CommandError, ExitCode, usage_error
from entityq_cli.log_format import configure_logging
from entityq_cli.refusal import one_sentence

R = TypeVar("R")

name_argument = click.argument("name")


def handle(app: str | None, name: str, act: Callable[[Schedules], Awaitable[R]], *, as_json: bool) -> R:
    """What `act` returns, when a runner has done it. Raises CommandError."""
    configure_logging("entityq", level="warning", style="text")
    with one_sentence(as_json=as_json, sending=True):
        loaded = load_app(app)
        try:
            schedule = loaded.cron.at(name)
        except KeyError:
            known = ", ".join(loaded.cron.names) or "none"
            raise usage_error(f"The app has no schedule {name}. It has: {known}.") from None
        try:
            return asyncio.run(_handle(loaded, schedule, act))
        except UnknownSchedule as failure:
            raise CommandError(
                f"The runner that owns {schedule.id} has code without it: is the app the one that runs?",
                ExitCode.FAILED,
            ) from failure


async def _handle(app: EntityQ, schedule: Schedules, act: Callable[[Schedules], Awaitable[R]]) -> R:
    async with app:
        return await act(schedule)
