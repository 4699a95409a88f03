"""A runner, ready to join. Orders: "join", and "look" for what it holds; SIGTERM drains it."""

import asyncio
import logging
import signal
from contextlib import suppress

import uvloop

from entityq.runner.runner import Runner
from tests.crash_points.journals import app
from tests.crash_points.reporting import Reports, reporting


def main(report_to: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(levelname)s %(name)s %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_main(report_to))


async def _main(report_to: str) -> None:
    async with reporting(report_to) as reports, app.open_runner(name=app.settings.namespace) as runner:
        reports.say("ready")
        order = await reports.order()
        if order is None:
            return
        draining = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, draining.set)
        listening = asyncio.create_task(_listen(reports, runner, draining), name="orders")
        stopping = asyncio.create_task(_drain(draining, runner), name="drain")
        try:
            await runner.run()
        finally:
            for task in (listening, stopping):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
    logging.info("drained")


async def _drain(draining: asyncio.Event, runner: Runner) -> None:
    await draining.wait()
    await runner.stop()


async def _listen(reports: Reports, runner: Runner, draining: asyncio.Event) -> None:
    while await reports.order() is not None:
        shards = [] if runner.life is None else list(runner.life.shards)
        serving = [owned.shard.number for owned in shards if not owned.intake.catching_up]
        streams = 0 if runner.life is None else len(runner.life.shards.streams)
        reports.say("looked", serving=serving, shards=len(shards), streams=streams)
    draining.set()  # the tests have gone
