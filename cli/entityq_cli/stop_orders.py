"""What a runner's process is told: to drain, or to stop cold."""

import asyncio
import os
import signal
import threading
import time
from types import FrameType

from entityq_cli.exit_code import ExitCode

_DRAIN = (signal.SIGTERM, signal.SIGINT)


def end_on_signals() -> None:
    """Until the event loop takes over: there is nothing to drain, and an app's import can take long."""
    for number in (*_DRAIN, signal.SIGQUIT):
        signal.signal(number, _end)
    # Its worker handles it; a runner has no terminal.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(ExitCode.FAILED if number == signal.SIGQUIT else ExitCode.DONE)


class StopOrders:
    """Any number of TERM and INT is one order to drain: a service manager may signal the whole group."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.cold = asyncio.Event()

    def listen(self) -> None:
        """From now on signals are orders."""
        loop = asyncio.get_running_loop()
        for number in _DRAIN:
            loop.add_signal_handler(number, self.drain.set)
        loop.add_signal_handler(signal.SIGQUIT, self.stop_cold)

    def stop_cold(self) -> None:
        self.drain.set()
        self.cold.set()


def end_within(seconds: float, code: ExitCode) -> None:
    """Ends the process then, whatever it still does: a handler's thread cannot be cancelled, and Python waits
    for it."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, name="end of the process", daemon=True).start()
