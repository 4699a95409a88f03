"""A request that was sent: how its receipt waits for the reply, from this loop, another one, or a thread."""

from collections.abc import Callable, Coroutine
from typing import Any

from entityq.call import Call
from entityq.client.blocking import GRACE, HomeLoop
from entityq.receipt import Receipt


class Replying:
    """`read` waits for the reply, for so many seconds, on the loop of its client."""

    __slots__ = ("_home", "_patience", "_read")

    def __init__(
        self, home: HomeLoop, read: Callable[[float], Coroutine[Any, Any, Any]], patience: float
    ) -> None:
        """`patience`: seconds for who does not say how long."""
        self._home = home
        self._read = read
        self._patience = patience

    def receipt(self, call: Call, request_id: int, *, duplicate: bool) -> Receipt[Any]:
        return Receipt(request_id, call.address, duplicate=duplicate, wait=self._wait, block=self._block)

    async def _wait(self, patience: float | None) -> Any:
        seconds = self._patience if patience is None else patience
        return await self._home.run(lambda: self._read(seconds))

    def _block(self, patience: float | None) -> Any:
        seconds = self._patience if patience is None else patience
        return self._home.run_blocking(lambda: self._read(seconds), seconds + GRACE)
