"""Signals without Postgres: what turns of a test client wait for."""

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from entityq.address import Address
from entityq.postgres.signals import StoredSignal
from entityq.runner.request import Request
from entityq.runner.suspensions import Suspension
from entityq.signal_outcome import SignalOutcome
from entityq.signal_token import SignalPlace, read_signal_token, signal_token
from entityq.status import EntityStatus, PendingSignal


@dataclass(frozen=True, slots=True, eq=False)
class _Wait:
    """`over`: whether its time has passed."""

    request: Request
    name: str
    until: float
    over: "asyncio.Future[bool]"


class MemorySignals:
    """A Signals. `now`: unix time, in seconds."""

    def __init__(self, replies: Mapping[int, "asyncio.Future[bytes]"], now: Callable[[], float]) -> None:
        self._replies = replies
        self.key = secrets.token_bytes(32)
        self._now = now
        self._stored: dict[int, dict[str, StoredSignal]] = {}
        self._waits: dict[int, _Wait] = {}
        self._waited: set[int] = set()

    # ----- Signals

    async def read(self, request_id: int) -> Mapping[str, StoredSignal]:
        return dict(self._stored.get(request_id, {}))

    async def has_waited(self, request_id: int) -> bool:
        return request_id in self._waited

    async def suspend(self, suspension: Suspension) -> bool | None:
        request = suspension.request
        if suspension.name in self._stored.get(request.request_id, {}):
            return True
        until = math.inf if suspension.timeout is None else self._now() + suspension.timeout
        over = asyncio.get_running_loop().create_future()
        self._waits[request.request_id] = _Wait(request, suspension.name, until, over)
        self._waited.add(request.request_id)
        return False

    async def end_wait(self, request: Request) -> None:
        """See `resumed`."""

    # ----- the test client

    @property
    def suspended(self) -> set[int]:
        """The ids of requests that wait."""
        return {request_id for request_id, wait in self._waits.items() if not wait.over.done()}

    async def resumed(self, request: Request) -> None:
        """Returns when its next attempt may begin."""
        wait = self._waits.get(request.request_id)
        if wait is None:
            return
        try:
            if await wait.over:
                self._stored.setdefault(request.request_id, {})[wait.name] = StoredSignal(None, ended=True)
        finally:
            del self._waits[request.request_id]

    def cancel(self, request_id: int) -> None:
        wait = self._waits.get(request_id)
        if wait is not None:
            wait.request.cancel()
            self._wake(request_id, over=False)

    def advance(self) -> None:
        """The clock has gone forward."""
        for request_id, wait in self._waits.items():
            if wait.until <= self._now():
                self._wake(request_id, over=True)

    async def signal(self, token: str, value: bytes) -> SignalOutcome:
        """Raises MalformedMessage."""
        place = read_signal_token(self.key, token)
        known = self._stored.setdefault(place.request_id, {})
        first = known.get(place.name)
        if first is not None:
            return SignalOutcome.TIMED_OUT if first.value is None else SignalOutcome.ALREADY
        reply = self._replies.get(place.request_id)
        if reply is None or reply.done():
            return SignalOutcome.UNKNOWN if reply is None else SignalOutcome.ANSWERED
        known[place.name] = StoredSignal(value, ended=True)
        wait = self._waits.get(place.request_id)
        if wait is not None and wait.name == place.name:
            self._wake(place.request_id, over=False)
        return SignalOutcome.SIGNALLED

    def status(self, address: Address, stored: EntityStatus) -> EntityStatus:
        """`stored`: what it is without signals."""
        for request_id, wait in self._waits.items():
            if wait.request.envelope.address == address and not wait.over.done():
                token = signal_token(self.key, SignalPlace(request_id, wait.name))
                return EntityStatus("suspended", stored.updated_at, PendingSignal(wait.name, token))
        return stored

    def _wake(self, request_id: int, *, over: bool) -> None:
        wait = self._waits.get(request_id)
        if wait is not None and not wait.over.done():
            wait.over.set_result(over)
