"""The limits of a runner's messages: who may start, who waits, and who steps aside because too many wait."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from entityq.address import Address
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.limit import MaxRunning, RateLimit
from entityq.postgres.pinned_connection import LeaseLost
from entityq.runner.activation import Activation
from entityq.runner.gates import Gate, LocalRate
from entityq.runner.gcra import Pace
from entityq.runner.line import Line, Place
from entityq.runner.request import Request
from entityq.runner.room import Room

# Entities of which a rate is remembered, before those are looked for that can be forgotten.
REMEMBERED = 10_000
MOST_REMEMBERED = 100_000

# Seconds between two looks at who has waited for too long.
LOOK_EVERY = 0.25

# An entity type, and a message or "" for all of its messages.
Name = tuple[str, str]


class NewGates(Protocol):
    """Makes the gates of one incarnation that more than one line can share."""

    def rate(self, name: Name, limit: RateLimit) -> Gate: ...

    def running(self, name: Name, limit: MaxRunning) -> Gate: ...


class Overflow(Protocol):
    """Where requests go for which there is no room to wait."""

    def step_aside(self, activation: Activation, request: Request, return_after: Callable[[], float]) -> bool:
        """Whether its entity is to be called in when there is room; a task comes back after those seconds."""
        ...

    def too_late(self, activation: Activation, request: Request) -> None:
        """A volatile request has waited until its deadline."""
        ...


class Limits:
    """Of one incarnation.

    Args:
        start: begins a task of the incarnation.
        lent: for the time that a request waits, with so many that can be behind it, it has no places that others
            may need.
        overflow: where requests go for which there is no room to wait.
        call_in: called with the shard and the address of an entity for which there is room again.
        wall: unix time in seconds.
    """

    def __init__(
        self,
        gates: NewGates,
        definitions: Mapping[str, EntityDefinition],
        *,
        start: Callable[[Coroutine[Any, Any, None], str], object],
        lent: Callable[[int], AbstractContextManager[None]],
        overflow: Callable[[], Overflow],
        call_in: Callable[[int, Address], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._new_gates = gates
        self._definitions = definitions
        self._start = start
        self._lent = lent
        self._overflow = overflow
        self._call_in = call_in
        self._clock = clock
        self._wall = wall
        self._gates: dict[tuple[str, Name], Gate] = {}
        self._entity_rates: dict[tuple[Name, Address], LocalRate] = {}
        self._lines: dict[tuple[Name, Address | None], Line[Activation]] = {}
        self._rooms: dict[Name, Room] = {}
        self._standing: dict[Request, Line[Activation]] = {}
        self._started: dict[Request, Line[Activation]] = {}
        self._aside: set[Request] = set()
        self._forget_at = REMEMBERED

    # ----- what activations call

    def admits(self, activation: Activation, request: Request) -> bool:
        """Whether the request may start; if not, its activation is pumped when it may."""
        definition = activation.definition
        message = definition.messages[request.envelope.message]
        if (
            not (message.limit or definition.limit)
            or message.name.startswith("$")
            or request in self._started
        ):
            return True
        if request in self._standing or request in self._aside:
            return False
        line = self._line(definition, message, activation.address)
        if line.at_once():
            self._granted(request, line, message)
            return True
        self._wait(activation, request, message, line)
        return False

    def left(self, request: Request) -> None:
        """It has left its mailbox, or its turn has ended."""
        line = self._started.pop(request, None)
        if line is not None:
            line.ended()
            self._drop(line, request)
            return
        line = self._standing.pop(request, None)
        if line is not None and line.leave(request):
            self._vacate(request)
            self._drop(line, request)

    # ----- waiting

    def _wait(
        self, activation: Activation, request: Request, message: MessageDefinition, line: Line[Activation]
    ) -> None:
        definition = activation.definition
        room = self._room(definition, message)
        entity = (request.shard_id, activation.address)
        # What cannot step aside waits here, too, and keeps its place of the prefetch.
        stays = message.concurrent and request.envelope.persisted
        if room.enter(entity):
            place = Place(activation)
            behind = 0 if definition.stateless or message.concurrent else definition.mailbox_capacity
            place.lent.enter_context(self._lent(behind))
            place.lent.callback(room.leave)
        elif stays:
            place = Place(activation)
        else:
            self._aside.add(request)
            # Not now: its activation is looking at its mailbox.
            asyncio.get_running_loop().call_soon(self._leave, activation, request, room)
            return
        line.waiting[request] = place
        self._standing[request] = line
        if not line.active:
            line.active = True
            self._start(self._run(line, request), f"limit of {definition.type}.{message.name}")

    async def _run(self, line: Line[Activation], first: Request) -> None:
        try:
            await line.run()
        except LeaseLost:
            return
        self._drop(line, first)

    async def run(self) -> None:
        """Ends the waiting of those whose time is over."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now = self._wall()
            for request, line in list(self._standing.items()):
                place = line.waiting.get(request)
                if place is not None and _overdue(request, now):
                    self._end_waiting(request, line, place.activation)

    def _end_waiting(self, request: Request, line: Line[Activation], activation: Activation) -> None:
        if not request.envelope.persisted:
            self._overflow().too_late(activation, request)
            return
        # Its turn only says that it has expired.
        line.leave(request)
        self._standing.pop(request)
        self._started[request] = Line[Activation]((), lambda _: None)
        self._vacate(request)
        activation.pump()

    def _leave(self, activation: Activation, request: Request, room: Room) -> None:
        self._aside.discard(request)
        if self._overflow().step_aside(activation, request, room.put_off):
            room.put_outside((request.shard_id, activation.address))

    def _vacate(self, request: Request) -> None:
        envelope = request.envelope
        room = self._rooms[envelope.address.type, envelope.message]
        for shard_id, address in room.call_in():
            self._call_in(shard_id, address)

    def _granted(self, request: Request, line: Line[Activation], message: MessageDefinition) -> None:
        self._standing.pop(request, None)
        self._started[request] = line
        definition = self._definitions[request.envelope.address.type]
        self._room(definition, message).started()

    def _room(self, definition: EntityDefinition, message: MessageDefinition) -> Room:
        return self._rooms.setdefault((definition.type, message.name), Room(clock=self._clock))

    # ----- lines and gates

    def _line(
        self, definition: EntityDefinition, message: MessageDefinition, address: Address
    ) -> Line[Activation]:
        limits = definition.limit, message.limit
        of_entity = any(limit.rate is not None and limit.rate.scope == "entity" for limit in limits)
        key = (definition.type, message.name), address if of_entity else None
        line = self._lines.get(key)
        if line is None:
            rates: list[Gate] = []
            running: list[Gate] = []
            for name, limit in ((key[0], message.limit), ((definition.type, ""), definition.limit)):
                if limit.running is not None:
                    running.append(self._running(name, limit.running))
                if limit.rate is not None:
                    rates.append(self._rate(name, limit.rate, address))
            gates = [*running, *rates]
            line = self._lines[key] = Line[Activation](
                gates, lambda request: self._from_line(request, message)
            )
        return line

    def _from_line(self, request: Request, message: MessageDefinition) -> None:
        line = self._standing[request]
        self._granted(request, line, message)
        self._vacate(request)

    def _drop(self, line: Line[Activation], request: Request) -> None:
        """Lines of single entities do not stay."""
        address = request.envelope.address
        key = (address.type, request.envelope.message), address
        if self._lines.get(key) is line and not line.waiting and not line.active:
            del self._lines[key]

    def _rate(self, name: Name, limit: RateLimit, address: Address) -> Gate:
        if limit.scope == "entity":
            return self._entity_rate(name, limit, address)
        key = "rate", name
        if key not in self._gates:
            self._gates[key] = self._new_gates.rate(name, limit)
        return self._gates[key]

    def _running(self, name: Name, limit: MaxRunning) -> Gate:
        key = "running", name
        if key not in self._gates:
            self._gates[key] = self._new_gates.running(name, limit)
        return self._gates[key]

    def _entity_rate(self, name: Name, limit: RateLimit, address: Address) -> LocalRate:
        if len(self._entity_rates) >= self._forget_at:
            self._forget_rates()
        key = name, address
        if key not in self._entity_rates:
            self._entity_rates[key] = LocalRate(Pace(limit.interval, limit.together), self._clock)
        return self._entity_rates[key]

    def _forget_rates(self) -> None:
        """Those that say nothing any more; where that is not enough, the oldest."""
        now = self._clock()
        kept = [one for one in self._entity_rates.items() if one[1].used_until > now or one[1].listeners]
        self._entity_rates = dict(kept[-MOST_REMEMBERED:])
        self._forget_at = max(REMEMBERED, 2 * len(self._entity_rates))


def _overdue(request: Request, now: float) -> bool:
    envelope = request.envelope
    if envelope.persisted:
        return envelope.expired(now)
    return envelope.deadline_ms is not None and envelope.deadline_ms < now * 1000
