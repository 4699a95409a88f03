"""A request that was sent: how its receipt waits for the reply, from this loop, another one, or a thread."""

from collections.abc import Callable, Coroutine
from typing import Any

from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.client.blocking import GRACE, HomeLoop
from entityq.receipt import Receipt

# Seconds: a cancel is tried again for at most so long.
CANCEL_TIME = 10.0


class Replying:
    """`read` waits for the reply, for so many seconds, and `cancel` cancels the request, on the loop of its client."""

    __slots__ = ("_cancel", "_home", "_patience", "_read")

    def __init__(
        self,
        home: HomeLoop,
        read: Callable[[float], Coroutine[Any, Any, Any]],
        cancel: Callable[[], Coroutine[Any, Any, CancelOutcome]],
        patience: float,
    ) -> None:
        """`patience`: seconds for who does not say how long."""
        self._home = home
        self._read = read
        self._cancel = cancel
        self._patience = patience

    def receipt(self, call: Call, request_id: int, *, duplicate: bool) -> Receipt[Any]:
        return Receipt(
            request_id,
            call.address,
            duplicate=duplicate,
            wait=self._wait,
            block=self._block,
            cancel=lambda: self._home.run(self._cancel),
            cancel_blocking=lambda: self._home.run_blocking(self._cancel, CANCEL_TIME + GRACE),
        )

    async def _wait(self, patience: float | None) -> Any:
        seconds = self._patience if patience is None else patience
        return await self._home.run(lambda: self._read(seconds))

    def _block(self, patience: float | None) -> Any:
        seconds = self._patience if patience is None else patience
        return self._home.run_blocking(lambda: self._read(seconds), seconds + GRACE)
