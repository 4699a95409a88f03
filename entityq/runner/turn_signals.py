"""Waiting for signals, as the handler of one turn does it: a value that is there, or the end of the attempt."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol, cast

from psycopg import Error as PostgresError

from entityq.errors import EntityQError, MalformedMessage, PersistenceError, SignalTimeout
from entityq.postgres.signals import StoredSignal
from entityq.runner.commit import NotApplied
from entityq.runner.request import Request
from entityq.runner.suspensions import Suspension
from entityq.schema import ValueSchema
from entityq.signal_token import SignalPlace, check_signal_name, signal_token
from entityq.signal_value import decode_signal, signal_schema
from entityq.timing import LONGEST


class Suspended(BaseException):
    """Ends the attempt. No Exception, so that a handler's `except Exception` lets it through."""


class Signals(Protocol):
    """Where signals are kept: implemented by a runner's tables and by entityq.testing. All raise psycopg.Error."""

    @property
    def key(self) -> bytes:
        """Of the tokens."""
        ...

    async def read(self, request_id: int) -> Mapping[str, StoredSignal]: ...

    async def has_waited(self, request_id: int) -> bool:
        """Whether a turn of the request has ever waited for a signal."""
        ...

    async def suspend(self, suspension: Suspension) -> bool | None:
        """Whether the signal is there already; None: nothing is to be done any more."""
        ...

    async def end_wait(self, request: Request) -> None:
        """The time of what it waits for has passed."""
        ...


class TurnSignals:
    """An OwnSignals. `waits_for`: the name and the timeout that the attempt ends with, once it does. `refusal`: why
    the turn can be neither applied nor answered."""

    def __init__(self, request: Request, signals: Signals) -> None:
        self.waits_for: tuple[str, float | None] | None = None
        self.refusal: NotApplied | None = None
        self._request = request
        self._signals = signals
        self._loop = asyncio.get_running_loop()
        self._reading = asyncio.Lock()
        self._known: Mapping[str, StoredSignal] | None = None
        self._ended = False

    def end(self) -> None:
        """The handler has returned."""
        self._ended = True

    # ----- OwnSignals

    def token(self, name: str) -> str:
        return signal_token(self._signals.key, SignalPlace(self._request.request_id, name))

    def wait(self, name: str, annotation: object, timeout: float | None) -> Coroutine[Any, Any, Any]:
        check_signal_name(name)
        # Before anything is waited for.
        schema = signal_schema(annotation, name)
        return self._wait(name, schema, None if timeout is None else _seconds(timeout))

    async def _wait(self, name: str, schema: ValueSchema, seconds: float | None) -> Any:
        stored = (await self._stored()).get(name)
        self._require_running()
        if stored is not None and stored.value is not None:
            return decode_signal(stored.value, schema)
        if stored is not None and stored.ended:
            raise SignalTimeout(
                f"{self._request.envelope.address} waited for the signal {name!r}, and it did not come in time",
                request_id=self._request.request_id,
            )
        self.waits_for = self.waits_for or (name, seconds)
        raise Suspended

    def wait_blocking(self, name: str, annotation: object, timeout: float | None) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._run(lambda: self.wait(name, annotation, timeout))
        raise EntityQError(
            "this would block the event loop", advice="Use `await self.context.wait_for(...)`."
        )

    # ----- helpers

    def _run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async def waited() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result()

    async def _stored(self) -> Mapping[str, StoredSignal]:
        """As at the first wait of the attempt."""
        self._require_running()
        async with self._reading:
            if self._known is None:
                try:
                    self._known = await self._signals.read(self._request.request_id)
                except (PostgresError, OSError) as error:
                    self.refusal = NotApplied(f"its signals could not be read: {error}", passing=True)
                    raise PersistenceError(self.refusal.reason) from error
        return self._known

    def _require_running(self) -> None:
        if self._ended:
            raise EntityQError(
                f"the turn of request {self._request.request_id} is over: it cannot wait for a signal any more",
                advice="Await everything that a handler starts before it returns.",
            )


def suspended(error: BaseException) -> bool:
    """Whether a handler ended because it waits; the tasks of a group raise it in one."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return any(map(suspended, group.exceptions))
    return isinstance(error, Suspended)


def _seconds(timeout: float) -> float:
    if math.isnan(timeout) or not 0 < timeout <= LONGEST:
        raise MalformedMessage(
            f"the timeout of a wait must be more than 0 seconds, and at most 100 years, not {timeout}"
        )
    return timeout
