"""The facade for sync code: another thread's event loop does the work, this one waits, with a deadline."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from entityq.broadcast import Broadcast
from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.errors import Accepted, EntityQError, SendTimeout
from entityq.ports import BatchOutcome, Sender
from entityq.receipt import Receipt
from entityq.signal_outcome import SignalOutcome

T = TypeVar("T")

# Seconds. The work ends by a deadline of its own; this is for a loop that does not run any more.
GRACE = 15.0

Work = Callable[[Sender], Coroutine[Any, Any, T]]


def refuse_running_loop() -> None:
    """Raises EntityQError in a thread whose event loop would be blocked."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise EntityQError(
        "This would block the running event loop",
        advice="Use await: `await account.deposit(...)`, `await account.deposit.send(...)`, `await receipt`.",
    )


def result_within(future: Future[T], seconds: float) -> T:
    """The result of work on another thread's loop, which is cancelled when this thread stops waiting."""
    try:
        return future.result(seconds)
    except FutureTimeoutError:
        if future.done():
            raise  # the work's own
        raise SendTimeout(
            f"entityq's event loop did not answer within {seconds:g} s", accepted=Accepted.UNKNOWN
        ) from None
    finally:
        future.cancel()


class HomeLoop:
    """The event loop, and the process, that something was made on and can be waited for on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """On that loop, from any other."""
        if asyncio.get_running_loop() is self._loop:
            return await work()
        self._require_alive()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._loop))

    def run_blocking(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """On that loop, from another thread. Raises EntityQError inside a running loop."""
        refuse_running_loop()
        self._require_alive()
        return result_within(asyncio.run_coroutine_threadsafe(work(), self._loop), seconds)

    def _require_alive(self) -> None:
        if self._pid != os.getpid() or self._loop.is_closed() or not self._loop.is_running():
            raise EntityQError(
                "The event loop that sent this request does not run in this process any more",
                accepted=Accepted.YES,
                advice="Wait for the reply where it was sent, or repeat it with the same primary key.",
            )


class BlockingClient:
    """A BlockingSender. `run` does work with a Sender, elsewhere, within a number of seconds."""

    def __init__(
        self, run: Callable[[Work[Any], float], Any], *, send_timeout: float, ask_timeout: float
    ) -> None:
        self._run = run
        self._send_timeout = send_timeout
        self._ask_timeout = ask_timeout

    def send(self, call: Call) -> Receipt[Any]:
        receipt: Receipt[Any] = self._run(lambda sender: sender.send(call), self._send_timeout + GRACE)
        return receipt

    def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        outcomes: list[BatchOutcome] = self._run(
            lambda sender: sender.send_many(calls), self._send_timeout + GRACE
        )
        return outcomes

    def ask(self, call: Call) -> Any:
        timeout = self._ask_timeout if call.timeout is None else call.timeout
        return self._run(lambda sender: sender.ask(call), timeout + GRACE)

    def broadcast(self, call: Call) -> Broadcast:
        timeout = self._send_timeout if call.timeout is None else call.timeout
        reached: Broadcast = self._run(lambda sender: sender.broadcast(call), timeout + GRACE)
        return reached

    def cancel(self, request_id: int) -> CancelOutcome:
        outcome: CancelOutcome = self._run(
            lambda sender: sender.cancel(request_id), self._send_timeout + GRACE
        )
        return outcome

    def signal(self, token: str, value: bytes) -> SignalOutcome:
        outcome: SignalOutcome = self._run(
            lambda sender: sender.signal(token, value), self._send_timeout + GRACE
        )
        return outcome
