"""Passivation: dropping activations that were idle for their type's `max_idle`, or that stand in the way."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from entityq.entity import Entity
from entityq.runner.activation import Activation
from entityq.runner.residents import Residents
from entityq.runner.tasks import StartsTasks

LOOK_EVERY = 1.0


class Passivation:
    """One loop per runner, and the way to make room when the runner is full.

    Args:
        ended: called when an activation has ended and left the table.
    """

    def __init__(
        self,
        residents: Residents,
        tasks: StartsTasks,
        *,
        ended: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._residents = residents
        self._tasks = tasks
        self._ended = ended
        self._clock = clock

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            for activation in self._residents.idle_since(self._clock()):
                self._end(activation)

    def make_room(self) -> bool:
        """Passivate the longest idle activation. Returns whether there is room at once."""
        activation = self._residents.longest_idle()
        if activation is not None:
            self._end(activation)
        return not self._residents.full

    def _end(self, activation: Activation) -> None:
        self._residents.busy(activation)
        instance = activation.instance
        if instance is None or type(instance).on_deactivate is Entity.on_deactivate:
            activation.instance = None
            self._residents.remove(activation)
            self._ended()
        else:
            # Begun before the task runs: a request that arrives in between must not start a turn.
            ending = activation.end_instance()
            self._tasks.start(self._deactivate(activation, ending), f"passivate {activation.address}")

    async def _deactivate(self, activation: Activation, ending: Coroutine[Any, Any, None]) -> None:
        await ending
        if activation.mailbox or activation.running:
            activation.pump()
        else:
            self._residents.remove(activation)
            self._ended()
