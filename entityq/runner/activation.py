"""A live entity in a runner's memory, with its mailbox.

The activation stays in the runner's table while its instance is loaded, in use, or ending, so that a new
instance of the same entity can never start before the old one has ended.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from entityq.address import Address
from entityq.definition import Activation as Instance
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.runner.commit import Tenure
from entityq.runner.mailbox import next_to_start
from entityq.runner.request import Request, running
from entityq.runner.turn_slots import TurnSlots
from entityq.runner.user_errors import USER_ERRORS, raise_if_cancelled

log = logging.getLogger(__name__)

# Seconds for on_deactivate: requests wait for it.
DEACTIVATION_TIME = 10.0


class Turns(Protocol):
    """What an activation needs of its runner."""

    @property
    def slots(self) -> TurnSlots: ...

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]": ...

    async def take_turn(
        self, activation: "Activation", request: Request, message: MessageDefinition
    ) -> None: ...

    def drained(self, activation: "Activation") -> None: ...


class Limits(Protocol):
    """What turns wait for before they start."""

    def admits(self, activation: "Activation", request: Request) -> bool:
        """Whether the request may start; if not, the activation is pumped when it may."""
        ...

    def left(self, request: Request) -> None:
        """It has left its mailbox, or its turn has ended."""
        ...


class NoLimits:
    """Of a cluster without runners."""

    def admits(self, activation: "Activation", request: Request) -> bool:
        del activation, request
        return True

    def left(self, request: Request) -> None: ...


class Activation:
    """One entity: an instance (loaded at its first turn), a mailbox, and the turns under way."""

    __slots__ = (
        "_clock",
        "_ended",
        "_limits",
        "_turns",
        "address",
        "deactivation_time",
        "definition",
        "instance",
        "last_used",
        "loading",
        "mailbox",
        "ordered_busy",
        "running",
        "state",
        "state_version",
        "tenure",
        "version",
    )

    def __init__(
        self,
        definition: EntityDefinition,
        address: Address,
        tenure: Tenure,
        turns: Turns,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.definition = definition
        self.address = address
        self.tenure = tenure
        self.instance: Instance | None = None
        self.version = 0
        self.state: bytes | None = None
        self.state_version = 1
        self.mailbox: deque[tuple[Request, bool]] = deque()
        self.running: dict[asyncio.Task[None], Request] = {}
        self.ordered_busy = False
        # Held while the instance is made: concurrent turns that start together share one.
        self.loading = asyncio.Lock()
        self.last_used = clock()
        self.deactivation_time = DEACTIVATION_TIME
        self._ended: asyncio.Event | None = None
        self._turns = turns
        self._limits = NoLimits() if limits is None else limits
        self._clock = clock

    @property
    def ending(self) -> bool:
        return self._ended is not None

    @property
    def queued(self) -> int:
        return len(self.mailbox) + len(self.running)

    @property
    def idle(self) -> bool:
        return not self.mailbox and not self.running and not self.ending

    def deliver(self, request: Request, message: MessageDefinition) -> None:
        """Put an admitted request into the mailbox; it starts as soon as its order allows."""
        self.mailbox.append((request, message.concurrent))
        self.pump()

    def take_out(self, request_id: int) -> Request | None:
        """A request that has not started leaves the mailbox, to be answered."""
        for place, (request, _) in enumerate(self.mailbox):
            if request.request_id == request_id:
                del self.mailbox[place]
                self._limits.left(request)
                return request
        return None

    def interrupt(self, request_id: int) -> bool:
        """Whether it has a turn, which is ended as far as it can be: see `Request.cancel`."""
        for request in self.running.values():
            if request.request_id == request_id:
                request.cancel()
                return True
        return False

    def pump(self) -> None:
        """Start what may start now."""
        while not self.ending and len(self.running) < self.definition.concurrency:
            place = next_to_start(self.mailbox, ordered_busy=self.ordered_busy, admits=self._admits)
            if place is None or not self._turns.slots.take(self):
                return
            request, concurrent = self.mailbox[place]
            del self.mailbox[place]
            self._start(request, concurrent)

    def _admits(self, request: Request) -> bool:
        return self._limits.admits(self, request)

    def _start(self, request: Request, concurrent: bool) -> None:
        message = self.definition.messages[request.envelope.message]
        if not concurrent:
            self.ordered_busy = True
        task = self._turns.start(
            self._turn(request, message, concurrent), f"turn {self.address} {request.request_id}"
        )
        self.running[task] = request

    async def _turn(self, request: Request, message: MessageDefinition, concurrent: bool) -> None:
        running.set(request)
        try:
            await self._turns.take_turn(self, request, message)
        finally:
            task = asyncio.current_task()
            if task is not None:
                self.running.pop(task, None)
            if not concurrent:
                self.ordered_busy = False
            self.last_used = self._clock()
            self._turns.slots.give_back()
            self._limits.left(request)
            self.pump()
            self._turns.drained(self)

    def forget_state(self) -> None:
        """The next instance is made of what the table has then."""
        self.version, self.state = 0, None

    def end_instance(self) -> Coroutine[Any, Any, None]:
        """Take the instance away, now; await the result, which runs on_deactivate.

        From this moment requests wait in the mailbox, until the instance has ended, whoever began to end it.
        """
        if self._ended is not None:
            return self._until(self._ended)
        instance, self.instance = self.instance, None
        self._ended = ended = asyncio.Event()
        return self._deactivate(instance, ended)

    async def _until(self, ended: asyncio.Event) -> None:
        await ended.wait()

    async def _deactivate(self, instance: Instance | None, ended: asyncio.Event) -> None:
        # Also where a turn ends its instance: the request has been answered, or is not to blame.
        before = running.set(self.address)
        try:
            if instance is not None:
                async with asyncio.timeout(self.deactivation_time):
                    await instance.on_deactivate()
        except USER_ERRORS as error:
            raise_if_cancelled(error)
            log.exception("entity.deactivate_failed entity=%s", self.address)
        finally:
            running.reset(before)
            self._ended = None
            ended.set()
