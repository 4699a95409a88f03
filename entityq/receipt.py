"""What a send returns: the request is accepted, its reply can be waited for."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from entityq.address import Address
from entityq.cancel_outcome import CancelOutcome

R = TypeVar("R")


class Receipt(Generic[R]):
    """Of an accepted request. `duplicate` says that its primary key was known: the reply is the first one's.

    `await receipt`, or `receipt.get()` in sync code, gives the reply as often as wanted; both raise the
    entity's Failure, or an EntityQError.
    """

    __slots__ = ("_block", "_cancel", "_cancel_blocking", "_wait", "address", "duplicate", "request_id")

    def __init__(
        self,
        request_id: int,
        address: Address,
        *,
        duplicate: bool,
        wait: Callable[[float | None], Awaitable[R]],
        block: Callable[[float | None], R],
        cancel: Callable[[], Awaitable[CancelOutcome]],
        cancel_blocking: Callable[[], CancelOutcome],
    ) -> None:
        """`wait` and `block` take a timeout in seconds, None for the call's own, and give the reply."""
        self.request_id = request_id
        self.address = address
        self.duplicate = duplicate
        self._wait = wait
        self._block = block
        self._cancel = cancel
        self._cancel_blocking = cancel_blocking

    def __await__(self) -> Generator[Any, None, R]:
        return self._wait(None).__await__()

    def get(self, timeout: float | None = None) -> R:
        """The reply, within `timeout` seconds. Raises SendTimeout; an EntityQError inside a running loop."""
        return self._block(timeout)

    async def cancel(self) -> CancelOutcome:
        """The request is not run, or is interrupted, also for others who wait for it: they get Interrupted.

        It is on record when this returns. Raises PersistenceError when Postgres does not answer, EntityQError for
        a volatile message.
        """
        return await self._cancel()

    def cancel_blocking(self) -> CancelOutcome:
        """`cancel` from sync code."""
        return self._cancel_blocking()

    def __repr__(self) -> str:
        repeat = ", duplicate" if self.duplicate else ""
        return f"<Receipt of request {self.request_id} to {self.address}{repeat}>"
