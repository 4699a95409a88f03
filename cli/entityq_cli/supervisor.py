"""What a worker's own process does: start runners, keep them running, pass signals on, end.

It imports neither the app nor the library: it must survive what they do, and start in no time.
"""

import asyncio
import faulthandler
import logging
import signal
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import click

from entityq_cli.banner import banner
from entityq_cli.exit_code import ExitCode
from entityq_cli.file_watch import changed_file, snapshot
from entityq_cli.log_format import configure_logging
from entityq_cli.report import Loaded
from entityq_cli.runner_process import RunnerProcess
from entityq_cli.slot import Slot, pause
from entityq_cli.worker_options import WorkerOptions, runner_command, runner_name

_log = logging.getLogger(__name__)

# Seconds between two looks at the files of `entityq dev`.
_WATCH_INTERVAL = 0.5


class Stage(IntEnum):
    """How far the worker is on its way out; it only goes forward."""

    RUNNING = 0
    DRAIN = 1
    COLD = 2
    HARD = 3


_TO_RUNNERS = {Stage.DRAIN: signal.SIGTERM, Stage.COLD: signal.SIGQUIT, Stage.HARD: signal.SIGKILL}
_HOW = {
    Stage.DRAIN: "running turns end and commit; the same signal again stops cold",
    Stage.COLD: "running turns are cut off and will be run again by others; the same signal again kills",
    Stage.HARD: "killing the runners",
}


def run_worker(options: WorkerOptions) -> NoReturn:
    """Ends the process with the worker's exit code."""
    runner_name(options.name, 1)  # refuses a pattern before anything is started
    configure_logging("worker", level=options.log_level, style=options.log_format)
    raise SystemExit(asyncio.run(_supervise(options)))


async def _supervise(options: WorkerOptions) -> ExitCode:
    return await Supervisor(options).run()


class Supervisor:
    """One worker. Made inside its event loop."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._stage = Stage.RUNNING
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._id = uuid4().hex
        self._tasks = asyncio.TaskGroup()
        self._runners: set[RunnerProcess] = set()
        places = range(1, options.processes + 1)
        self._slots = [Slot(place, self._start, self._refused, self._stopping) for place in places]
        self._introduced = False
        self._ever_served = False
        self._rolling = False
        self._roll_again = False
        self._code = ExitCode.DONE

    async def run(self) -> ExitCode:
        """Returns when all runners have ended."""
        self._handle_signals()
        async with self._tasks:
            for place, slot in enumerate(self._slots, start=1):
                self._tasks.create_task(slot.run(), name=f"slot {place}")
            if self._options.reload:
                self._tasks.create_task(self._watch_files(), name="file watch")
        _log.info("worker.stopped exit=%d", self._code)
        return self._code

    def _handle_signals(self) -> None:
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._stop_further,
            signal.SIGINT: self._stop_further,
            signal.SIGQUIT: lambda: self._stop(max(Stage.COLD, self._stage)),
            signal.SIGUSR1: self._show_stacks,
        }
        # nohup has it ignored; with a terminal it means that the terminal is gone.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            on_terminal = sys.stdin is not None and sys.stdin.isatty()
            handlers[signal.SIGHUP] = self._stop_further if on_terminal else self._roll
        loop = asyncio.get_running_loop()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)

    async def _start(self, place: int) -> RunnerProcess:
        lasting = f"{self._id}/{place}"
        runner = await RunnerProcess.start(lambda link: runner_command(self._options, place, lasting, link))
        self._runners.add(runner)
        self._tasks.create_task(self._watch(runner), name=f"runner {place}")
        if self._stage:  # the signal came while it was being started
            runner.signal(_TO_RUNNERS[self._stage])
        return runner

    async def _watch(self, runner: RunnerProcess) -> None:
        await runner.watch(self._introduce)
        self._runners.discard(runner)
        self._ever_served = self._ever_served or runner.serving
        if self._stage is not Stage.DRAIN or runner.refused is not None:
            return
        # One that was told to end before it could listen was ended by the signal itself.
        if runner.exit_code not in {0, -signal.SIGTERM}:
            _log.error("worker.drain_failed pid=%d exit=%s", runner.pid, runner.exit_code)
            self._code = self._code or ExitCode.FAILED

    def _introduce(self, runner: RunnerProcess, loaded: Loaded) -> None:
        if self._introduced:
            return
        self._introduced = True
        if self._options.log_format == "text":
            click.echo(banner(loaded, self._options))
        _log.info(
            "worker.started app=%s namespace=%s processes=%d", loaded.app, loaded.namespace, len(self._slots)
        )

    async def _refused(self, runner: RunnerProcess) -> None:
        """Nobody has ever served: end, and say why. Otherwise the worker goes on with what it has."""
        refused = runner.refused
        if refused is None:
            return
        if self._options.reload:
            _log.error("worker.refused: %s Waiting for a changed file.", refused.sentence)
            await self._until_changed()
        elif self._ever_served or any(other.serving for other in self._runners):
            _log.error("worker.refused pid=%d: %s", runner.pid, refused.sentence)
            await pause(self._stopping, 10.0)
        else:
            click.echo(f"Error: {refused.sentence}", err=True)
            self._code = ExitCode(refused.code)
            self._stop(Stage.DRAIN)

    def _stop_further(self) -> None:
        self._stop(Stage(min(self._stage + 1, Stage.HARD)))

    def _stop(self, stage: Stage) -> None:
        if stage <= self._stage:
            return
        self._stage = stage
        if not self._code or stage > Stage.DRAIN:  # else it was refused, and has said why
            _log.info("worker.stopping stage=%s: %s", stage.name.lower(), _HOW[stage])
        if stage > Stage.DRAIN:
            self._code = self._code or ExitCode.FAILED
        self._stopping.set()
        self._changed.set()
        for runner in self._runners:
            runner.signal(_TO_RUNNERS[stage])

    def _show_stacks(self) -> None:
        faulthandler.dump_traceback(all_threads=True)
        for runner in self._runners:
            runner.signal(signal.SIGUSR1)

    def _roll(self) -> None:
        """A second one while the first is under way is done after it."""
        self._roll_again = True
        if not self._rolling and not self._stopping.is_set():
            self._rolling = True
            self._tasks.create_task(self._restart_all(), name="rolling restart")

    async def _restart_all(self) -> None:
        try:
            while self._roll_again and not self._stopping.is_set():
                self._roll_again = False
                await self._restart_one_by_one()
        finally:
            self._rolling = False

    async def _restart_one_by_one(self) -> None:
        _log.info("worker.restarting runners=%d: one after the other", len(self._slots))
        for slot in self._slots:
            if self._stopping.is_set():
                return
            failure = await slot.replace()
            if failure is not None and not self._stopping.is_set():
                _log.error(
                    "worker.restart_given_up: the old runners go on, a new one cannot serve. %s", failure
                )
                return
        _log.info("worker.restarted runners=%d", len(self._slots))

    async def _watch_files(self) -> None:
        directory = Path.cwd()
        known = snapshot(directory)
        while not self._stopping.is_set():
            await pause(self._stopping, _WATCH_INTERVAL)
            found = await asyncio.to_thread(snapshot, directory)
            if changed := changed_file(known, found):
                _log.info("worker.file_changed file=%s", changed)
                self._changed.set()
                self._roll()
            known = found

    async def _until_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()
