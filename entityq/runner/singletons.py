"""Runs the singletons whose shard is leased: started with the lease, and ended before it is given up."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from entityq.address import Address
from entityq.retry import delay
from entityq.runner.resources import Resources
from entityq.runner.tasks import Tasks
from entityq.runner.user_errors import USER_ERRORS, raise_if_cancelled
from entityq.singleton import Singleton, SingletonContext, Singletons

log = logging.getLogger(__name__)


class SingletonRuns:
    """Of one incarnation. Its tasks are beside those of the life, as turns are: they are users' code."""

    def __init__(self, resources: Resources, tasks: Tasks) -> None:
        self._declared = {
            Address(definition.type, name): singleton
            for definition in resources.definitions.values()
            if issubclass(definition.cls, Singletons)
            for name, singleton in definition.cls.declared().items()
        }
        self._facts = resources.current_facts
        self._tasks = tasks
        self._running: dict[int, list[asyncio.Task[None]]] = {}

    def acquired(self, shard_id: int, epoch: int) -> None:
        """The lease of a shard is ours."""
        for address, singleton in self._declared.items():
            if self._facts.shard_id(address) == shard_id:
                task = self._tasks.start_turn(_run(singleton, epoch), f"singleton {singleton.name}")
                self._running.setdefault(shard_id, []).append(task)

    @asynccontextmanager
    async def ending(self, shard_id: int) -> AsyncGenerator[None, None]:
        """Cancels those of a shard, and waits for their end behind what is done in it.

        Cancelled after the termination time: what still runs is abandoned.
        """
        tasks = self._running.pop(shard_id, [])
        for task in tasks:
            task.cancel()
        try:
            yield
            if tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                if not task.done():
                    # Its fencing token is what still tells it from the next one.
                    log.error("singleton.abandoned %s: it does not end", task.get_name())


async def _run(singleton: Singleton, epoch: int) -> None:
    """Until it is cancelled."""
    starts = failures = 0
    while True:
        starts, began = starts + 1, time.monotonic()
        log.info("singleton.started name=%s epoch=%s start=%s", singleton.name, epoch, starts)
        await _start(singleton, (epoch, starts))
        lasted = time.monotonic() - began
        failures = 1 if lasted > singleton.retry.maximum else failures + 1
        await asyncio.sleep(delay(singleton.retry, failures, random.random))


async def _start(singleton: Singleton, token: tuple[int, int]) -> None:
    """One life of it. Raises CancelledError where this task is cancelled, whatever the function makes of it."""
    try:
        await singleton.function(SingletonContext(singleton.name, token))
    except USER_ERRORS as error:
        raise_if_cancelled(error)
        log.exception("singleton.failed name=%s; it is started again", singleton.name)
    else:
        log.warning("singleton.returned name=%s; it is started again", singleton.name)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
