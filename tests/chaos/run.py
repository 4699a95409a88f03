"""One run: load, faults, the end of both, and the evidence that is left."""

import asyncio
import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from tests.chaos.arena import Arena, open_arena
from tests.chaos.crew import Worker
from tests.chaos.deck import KINDS, deal
from tests.chaos.evidence import Evidence
from tests.chaos.history import Journalist, Sample, read_history
from tests.chaos.nemesis import Nemesis
from tests.chaos.producer import PATIENCE
from tests.chaos.queries import QUERIES
from tests.chaos.stored import read_stored
from tests.support.processes import Running
from tests.support.servers import connected
from tests.support.waiting import eventually

# Seconds: until the shards are served, and until the first replies; for the last ones; of a drain at the end;
# between samples of the memory.
_WARM = 60.0
_LAST = PATIENCE + 30.0
_DRAIN = 40.0
_SAMPLING = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """`kinds` of faults, all of them by default."""

    seconds: float
    seed: int
    workers: int = 3
    producers: int = 3
    kinds: Sequence[str] = tuple(KINDS)


async def run(options: Options, directory: Path) -> Evidence:
    """Everything that the processes wrote is in the directory."""
    journalist = Journalist(directory / "faults.history")
    started = time.monotonic()
    async with open_arena(
        directory, workers=options.workers, producers=options.producers, seed=options.seed, started=started
    ) as arena:
        sampling = asyncio.create_task(_sample(arena, journalist), name="samples")
        try:
            await asyncio.to_thread(_start, arena)
            strikes = deal(
                Random(options.seed), options.kinds, workers=options.workers, producers=options.producers
            )
            nemesis = Nemesis(arena, journalist)
            await nemesis.strike(strikes, options.seconds, len(options.kinds))
            ends = nemesis.failed + await asyncio.to_thread(_wind_down, arena)
        finally:
            sampling.cancel()
            with suppress(asyncio.CancelledError):
                await sampling
            journalist.close()
        return await asyncio.to_thread(_collect, arena, ends)


def _start(arena: Arena) -> None:
    """Returns when everybody is at work: before, errors would be no fault's, and faults would show nothing."""
    for worker in arena.workers.values():
        worker.start()
    with connected(arena.servers.postgres_url) as connection:
        taken = QUERIES["all_taken"]
        eventually(lambda: connection.execute(taken).fetchone() == (True,), _WARM, "all shards are served")
    for producer in arena.producers.values():
        producer.start()
    for producer in arena.producers.values():
        file = producer.histories[0]

        def heard(file: Path = file) -> bool:
            return file.exists() and '"event": "replied"' in file.read_text(encoding="utf-8")

        eventually(heard, _WARM, f"{producer.name} has a reply")


async def _sample(arena: Arena, journalist: Journalist) -> None:
    while True:
        for worker in arena.workers.values():
            for runner in worker.runners():
                with suppress(psutil.NoSuchProcess):
                    journalist.sampled(Sample(runner.pid, time.monotonic(), runner.memory_info().rss))
        await asyncio.sleep(_SAMPLING)


def _wind_down(arena: Arena) -> list[str]:
    """Everything that was sent is answered, then all processes end; returns what they should not have done."""
    ends: list[str] = []
    for producer in arena.producers.values():
        producer.process.terminate()
    for producer in arena.producers.values():
        ends += _ended(producer.name, producer.process, _LAST)
    with connected(arena.servers.postgres_url) as connection, suppress(AssertionError):
        # The check says what is left.
        eventually(lambda: connection.execute(QUERIES["count_pending"]).fetchone() == (0,), _LAST)
    for worker in arena.workers.values():
        worker.runners()
        worker.process.terminate()
    for worker in arena.workers.values():
        ends += _ended(worker.name, worker.process, _DRAIN)
        ends += [f"runner {runner.pid} of {worker.name} did not end" for runner in worker.left()]
        ends += _unexpected_ends(worker)
    return ends


def _ended(name: str, process: Running, seconds: float) -> list[str]:
    try:
        process.ended(seconds)
    except subprocess.TimeoutExpired:
        return [f"{name} did not end within {seconds:g} s"]
    code = process.wait().code
    return [f"{name} ended with {code}"] if code else []


def _unexpected_ends(worker: Worker) -> list[str]:
    """Lines of the worker's logs about runners that no fault has killed."""
    found: list[str] = []
    for life in worker.lives:
        for line in life.stderr.splitlines():
            if '"worker.runner_ended"' not in line:
                continue
            if int(json.loads(line)["facts"]["pid"]) not in worker.killed:
                found.append(f"{worker.name}: {line}")
    return found


def _collect(arena: Arena, ends: list[str]) -> Evidence:
    with connected(arena.servers.postgres_url) as connection:
        stored = read_stored(connection)
    return Evidence(read_history(sorted(arena.directory.glob("*.history"))), stored, ends)
