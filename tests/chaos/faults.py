"""What each kind of fault does: it strikes, lasts, and is healed when its function returns."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping

from tests.chaos.arena import Arena
from tests.chaos.crew import Producer, Worker
from tests.chaos.deck import Strike
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import Killable
from tests.support.waiting import eventually

# Seconds: of a worker that drains, of a runner that starts, on a machine that is busy.
_DRAIN = 40.0
_START = 40.0

# Seconds, added to each way of a slow link.
_DELAY = 0.05

Effect = Callable[[Arena, Strike], Awaitable[None]]


async def _runner_killed(arena: Arena, strike: Strike) -> None:
    worker = await _served(arena, strike)
    worker.signal_runners(signal.SIGKILL)


async def _worker_killed(arena: Arena, strike: Strike) -> None:
    """Its runner finds out by itself, and drains."""
    worker = await _served(arena, strike)
    worker.process.signal(signal.SIGKILL)
    await asyncio.sleep(strike.seconds)
    worker.start()


async def _host_killed(arena: Arena, strike: Strike) -> None:
    worker = await _served(arena, strike)
    worker.runners()
    await asyncio.to_thread(worker.process.kill)
    await asyncio.sleep(strike.seconds)
    worker.start()


async def _runner_frozen(arena: Arena, strike: Strike) -> None:
    worker = await _served(arena, strike)
    worker.signal_runners(signal.SIGSTOP)
    try:
        await asyncio.sleep(strike.seconds)
    finally:
        worker.signal_runners(signal.SIGCONT)


async def _worker_drained(arena: Arena, strike: Strike) -> None:
    worker = await _served(arena, strike)
    worker.process.terminate()
    await asyncio.to_thread(worker.process.ended, _DRAIN)
    await asyncio.sleep(strike.seconds)
    worker.start()


async def _worker_rolled(arena: Arena, strike: Strike) -> None:
    worker = await _served(arena, strike)
    before = set(worker.runners())
    worker.process.signal(signal.SIGHUP)

    def rolled() -> bool:
        runners = worker.runners()
        return len(runners) == 1 and not before.intersection(runners)

    await asyncio.to_thread(eventually, rolled, _START + _DRAIN, f"{strike.victim} has another runner")


async def _served(arena: Arena, strike: Strike) -> Worker:
    """The worker, as soon as it has one runner."""
    worker = arena.workers[strike.victim]
    has_one = f"{strike.victim} has a runner"
    await asyncio.to_thread(eventually, lambda: len(worker.runners()) == 1, _START + _DRAIN, has_one)
    return worker


async def _lease_terminated(arena: Arena, strike: Strike) -> None:
    await asyncio.to_thread(arena.end_backends, "lease_backends", strike.at % 1.0)


async def _backends_terminated(arena: Arena, _: Strike) -> None:
    await asyncio.to_thread(arena.end_backends, "other_backends", -1.0)


async def _killed(server: Killable, seconds: float) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.start)


async def _frozen(server: Killable, seconds: float) -> None:
    await asyncio.to_thread(server.freeze)
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.to_thread(server.thaw)


async def _cut(link: FaultProxy, seconds: float) -> None:
    link.refuse()
    link.cut()
    await asyncio.sleep(seconds)
    link.heal()


async def _lost(link: FaultProxy, seconds: float) -> None:
    link.black_hole()
    await asyncio.sleep(seconds)
    link.heal()


async def _slow(link: FaultProxy, seconds: float) -> None:
    link.delay(_DELAY)
    await asyncio.sleep(seconds)
    link.heal()


async def _producer_killed(arena: Arena, strike: Strike) -> None:
    producer: Producer = arena.producers[strike.victim]
    await asyncio.to_thread(producer.process.kill)
    await asyncio.sleep(strike.seconds)
    producer.start()


EFFECTS: Mapping[str, Effect] = {
    "runner-killed": _runner_killed,
    "worker-killed": _worker_killed,
    "host-killed": _host_killed,
    "runner-frozen-briefly": _runner_frozen,
    "runner-frozen": _runner_frozen,
    "worker-drained": _worker_drained,
    "worker-rolled": _worker_rolled,
    "lease-terminated": _lease_terminated,
    "backends-terminated": _backends_terminated,
    "postgres-killed": lambda arena, strike: _killed(arena.servers.postgres, strike.seconds),
    "postgres-restarted": lambda arena, _: asyncio.to_thread(arena.servers.postgres.restart),
    "postgres-frozen": lambda arena, strike: _frozen(arena.servers.postgres, strike.seconds),
    "valkey-killed": lambda arena, strike: _killed(arena.servers.valkey, strike.seconds),
    "valkey-flushed": lambda arena, _: asyncio.to_thread(arena.servers.flush),
    "valkey-frozen": lambda arena, strike: _frozen(arena.servers.valkey, strike.seconds),
    "postgres-cut": lambda arena, strike: _cut(arena.member(strike.victim).links.postgres, strike.seconds),
    "postgres-lost": lambda arena, strike: _lost(arena.member(strike.victim).links.postgres, strike.seconds),
    "postgres-slow": lambda arena, strike: _slow(arena.member(strike.victim).links.postgres, strike.seconds),
    "redis-cut": lambda arena, strike: _cut(arena.member(strike.victim).links.redis, strike.seconds),
    "redis-lost": lambda arena, strike: _lost(arena.member(strike.victim).links.redis, strike.seconds),
    "redis-slow": lambda arena, strike: _slow(arena.member(strike.victim).links.redis, strike.seconds),
    "producer-killed": _producer_killed,
}
