"""`python -m tests.chaos.producer`: sends with two client objects and writes down what comes of it.

It goes on until SIGTERM, then waits for the rest of its replies. A replacement of a killed producer first
repeats the keys of which its predecessors never heard.
"""

import argparse
import asyncio
import signal
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from entityq import EntityDefect, EntityQError, Failure, PersistenceError, PrimaryKeyConflict, Receipt
from tests.chaos.history import Invocation, Journalist, read_history
from tests.chaos.ledger import Desk, Ledger, Refused, app, plain
from tests.chaos.operation import KEYED, Operation, keyed, plan
from tests.promises.cluster import Sending

# Seconds: for the rest after SIGTERM; between two attempts with one key; of volatile reads.
PATIENCE = 90.0
PAUSE = 0.3
READ_TIMEOUT = 2.0
# Of one sender, and how many per second it starts.
MAX_UNDER_WAY = 100
RATE = 30.0


class Sender:
    """One client object."""

    def __init__(self, name: str, home: Sending, journalist: Journalist, random: Random) -> None:
        self._name = name
        self._home = home
        self._journalist = journalist
        self._random = random
        self._numbers = count(1)
        self._room = asyncio.Semaphore(MAX_UNDER_WAY)
        self._deadline: float | None = None

    async def work(self, started: float, stop: asyncio.Event, todo: list[Operation]) -> None:
        """Returns when everything that it sent is settled."""
        async with asyncio.TaskGroup() as tasks:
            for operation in todo:
                await self._start(tasks, operation)
            number = 0
            while not stop.is_set():
                number += 1
                for operation in plan(self._random, self._name, number, time.monotonic() - started):
                    await self._start(tasks, operation)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._random.expovariate(RATE)):
                        await stop.wait()
            self._deadline = time.monotonic() + PATIENCE

    async def _start(self, tasks: asyncio.TaskGroup, operation: Operation) -> None:
        # Tasks begin in the order in which they were created, and send before they first wait.
        await self._room.acquire()
        tasks.create_task(self._settle(operation), name=operation.kind)

    @property
    def _patient(self) -> bool:
        return self._deadline is None or time.monotonic() < self._deadline

    async def _settle(self, operation: Operation) -> None:
        try:
            while not await self._attempt(operation) and operation.key is not None and self._patient:
                await asyncio.sleep(PAUSE)
                operation = replace(operation, waits=True)
        finally:
            self._room.release()

    async def _attempt(self, operation: Operation) -> bool:
        """Whether its outcome is known for good."""
        n = next(self._numbers)
        invocation = Invocation(
            sender=self._name,
            n=n,
            kind=operation.kind,
            type=operation.type,
            entity=operation.entity,
            message=operation.message,
            key=operation.key,
            variant=operation.variant,
        )
        self._journalist.invoked(invocation)
        try:
            value = await self._perform(operation, invocation)
        except Refused as refused:
            value = refused
        except (PrimaryKeyConflict, EntityDefect, Failure) as error:
            self._journalist.failed(invocation, _as_error(error))
            return True
        except EntityQError as error:
            self._journalist.failed(invocation, error)
            return False
        self._journalist.replied(invocation, plain(value))
        return True

    async def _perform(self, operation: Operation, invocation: Invocation) -> Any:
        bound = self._bound(operation)
        arguments = _arguments(operation, invocation)
        if operation.message == "read":
            return await bound.options(timeout=READ_TIMEOUT)(**arguments)
        if operation.waits:
            return await bound(**arguments)
        receipt: Receipt[Any] = await bound.send(**arguments)
        self._journalist.accepted(invocation, receipt.request_id, duplicate=receipt.duplicate)
        while True:
            try:
                return await receipt
            except (EntityDefect, PrimaryKeyConflict):
                raise
            except EntityQError as error:
                self._journalist.failed(invocation, error)
                if not self._patient:
                    raise
                await asyncio.sleep(PAUSE)

    def _bound(self, operation: Operation) -> Any:
        entity = Desk if operation.type == "Desk" else Ledger
        return getattr(self._home.at(entity, operation.entity), operation.message)


def _arguments(operation: Operation, invocation: Invocation) -> dict[str, Any]:
    if operation.message == "read":
        return {}
    if operation.key is not None:
        return {"key": operation.key, "variant": operation.variant}
    return {"origin": invocation.sender, "n": invocation.n, **operation.arguments}


def _as_error(error: EntityQError | Failure) -> EntityQError:
    return error if isinstance(error, EntityQError) else EntityQError(f"unknown failure {error!r}")


def unheard(files: list[Path]) -> list[Operation]:
    """The keys that were sent and never answered: what a replacement has to repeat."""
    attempts = read_history(files).attempts.values()
    known = {attempt.invocation.key for attempt in attempts if attempt.value is not None}
    conflicts = {
        (attempt.invocation.key, attempt.invocation.variant)
        for attempt in attempts
        if any(raised.error == "PrimaryKeyConflict" for raised in attempt.errors)
    }
    asked = {
        (attempt.invocation.key, attempt.invocation.variant): attempt.invocation.kind
        for attempt in attempts
        if attempt.invocation.kind in KEYED and attempt.invocation.key not in known
    }
    return [
        keyed(kind, key, variant)
        for (key, variant), kind in asked.items()
        if key is not None and (key, variant) not in conflicts
    ]


async def produce(name: str, seed: int, file: Path, started: float, todo: list[Operation]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    journalist = Journalist(file)
    async with AsyncExitStack() as stack:
        stack.callback(journalist.close)
        senders: list[Sender] = []
        for letter in "ab":
            home = await _home(stack, stop)
            if home is None:
                return
            random = Random(f"{seed} {name}{letter}")
            senders.append(Sender(f"{name}{letter}", home, journalist, random))
        async with asyncio.TaskGroup() as tasks:
            for place, sender in enumerate(senders):
                tasks.create_task(sender.work(started, stop, todo[place :: len(senders)]))


async def _home(stack: AsyncExitStack, stop: asyncio.Event) -> Sending | None:
    """A client object of its own; Postgres may be down for a while. None when it is to stop."""
    while not stop.is_set():
        try:
            client = await stack.enter_async_context(app.open_client())
        except PersistenceError:
            await asyncio.sleep(PAUSE)
        else:
            return Sending(client, app.serializer, app.settings)
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--started", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("predecessors", nargs="*", type=Path)
    given = parser.parse_args()
    todo = unheard(given.predecessors)
    asyncio.run(produce(given.name, given.seed, given.history, given.started, todo))


if __name__ == "__main__":
    main()
