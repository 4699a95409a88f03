"""Random sends, repeats, faults and recoveries against a model: each key applied once, replies of a key equal,
the order of each sender, everything accepted answered.

More examples: `make soak`, or SOAK_EXAMPLES=500.
"""

import asyncio
import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from entityq import PrimaryKeyConflict, Receipt
from tests.promises.cluster import Cluster, Running, Sending, open_cluster
from tests.promises.journals import Journal, app
from tests.support.servers import flush, migrate_database

T = TypeVar("T")

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "12"))
STEPS = 30
PATIENCE = 30.0

SENDERS = 3
ENTITIES = 3
KEYS = 6


class LoopThread:
    """A loop that goes on while the machine thinks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stateful", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE * 2)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@dataclass(slots=True, eq=False)
class Sent:
    """One send, and what became of it."""

    sender: int
    entity: str
    key: str
    amount: int
    accepting: asyncio.Task[Receipt[list[str]]]
    receipt: Receipt[list[str]] | None = None
    conflict: PrimaryKeyConflict | None = None
    reply: list[str] | None = None

    @property
    def entry(self) -> str:
        return f"{self.key}={self.amount}"


@dataclass(slots=True)
class World:
    """The cluster of one example, and everything that was sent in it."""

    cluster: Cluster
    stack: AsyncExitStack
    senders: list[Sending]
    sent: list[Sent] = field(default_factory=list[Sent])
    runners: list[Running] = field(default_factory=list[Running])
    stored: dict[int, bytes] = field(default_factory=dict[int, bytes])
    # Redis as it was at some time: keys and dumps.
    replica: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])

    async def send(self, sender: int, entity: str, keys: list[str], amount: int) -> None:
        """All at once, in this order. Returns when the client has them, not when they are accepted."""
        journal = self.senders[sender].at(Journal, entity)
        for key in keys:
            accepting = asyncio.create_task(journal.write.send(key, amount), name=f"send {key}")
            self.sent.append(Sent(sender, entity, key, amount, accepting))
        await asyncio.sleep(0)

    async def start(self) -> None:
        name = f"runner {len(self.cluster.running)}"
        # Little is read ahead, so that much is on its way when something breaks.
        self.runners.append(await self.cluster.start(name, prefetch=4, max_turns=2))

    # ----- the end of an example, or a moment of rest within it

    async def settle(self) -> None:
        """Everything that was sent is accepted or refused, and everything accepted is answered."""
        if not self.runners:
            await self.start()
        for sent in self.sent:
            if sent.receipt is None and sent.conflict is None:
                try:
                    sent.receipt = await asyncio.wait_for(sent.accepting, PATIENCE)
                except PrimaryKeyConflict as conflict:
                    sent.conflict = conflict
        waiting = [sent for sent in self.sent if sent.receipt is not None and sent.reply is None]
        replies = await asyncio.gather(*(sent.receipt for sent in waiting if sent.receipt is not None))
        for sent, reply in zip(waiting, replies, strict=True):
            sent.reply = reply
        assert self.cluster.pending == 0, "accepted, and not answered"
        for running in self.runners:
            assert not running.task.done(), running.task

    async def journals(self) -> dict[str, list[str]]:
        entities = {sent.entity for sent in self.sent}

        async def read(entity: str) -> list[str]:
            return await self.senders[0].at(Journal, entity).read()

        return {entity: await read(entity) for entity in entities}

    def check(self, journals: dict[str, list[str]]) -> None:
        for entity, journal in journals.items():
            of_entity = [sent for sent in self.sent if sent.entity == entity]
            self._check_keys(of_entity, journal)
            self._check_order(of_entity, journal)
        stored = self.cluster.replies()
        assert len(stored) == sum(len(journal) for journal in journals.values())
        for request_id, reply in self.stored.items():
            assert stored[request_id] == reply, f"the reply of {request_id} was replaced"
        self.stored = stored

    def _check_keys(self, sends: list[Sent], journal: list[str]) -> None:
        by_key: defaultdict[str, list[Sent]] = defaultdict(list)
        for sent in sends:
            by_key[sent.key].append(sent)
        assert len(journal) == len(by_key), f"each key once: {journal}"
        for key, repeats in by_key.items():
            (place,) = [place for place, entry in enumerate(journal) if entry.startswith(f"{key}=")]
            accepted = [sent for sent in repeats if sent.receipt is not None]
            assert {sent.entry for sent in accepted} == {journal[place]}
            assert all(sent.entry != journal[place] for sent in repeats if sent.conflict is not None)
            # What the handler returned when it was applied: the last three entries, and how many there were.
            expected = [*journal[max(0, place - 2) : place + 1], str(place + 1)]
            assert all(sent.reply == expected for sent in accepted), (expected, [s.reply for s in accepted])
            ids = {sent.receipt.request_id for sent in accepted if sent.receipt is not None}
            assert len(ids) == 1
            assert sum(not sent.receipt.duplicate for sent in accepted if sent.receipt is not None) == 1

    def _check_order(self, sends: list[Sent], journal: list[str]) -> None:
        for sender in range(SENDERS):
            firsts = [
                sent.entry
                for sent in sends
                if sent.sender == sender and sent.receipt is not None and not sent.receipt.duplicate
            ]
            assert firsts == [entry for entry in journal if entry in set(firsts)], (sender, firsts, journal)

    # ----- faults

    async def lose_entries(self, every: int) -> None:
        """Every so-many-th entry that is in a stream now."""
        redis: Any = self.cluster.redis
        for stream in await redis.keys("eq:*:stream:*"):
            entries = await redis.xrange(stream)
            lost = [entry_id for entry_id, _ in entries[::every]]
            if lost:
                await redis.xdel(stream, *lost)

    async def replicate(self) -> None:
        redis: Any = self.cluster.redis
        dumps = {key: await redis.dump(key) for key in await redis.keys("eq:*")}
        self.replica = {key: dump for key, dump in dumps.items() if dump is not None}

    async def fail_over(self) -> None:
        """To a replica that was behind: entries are gone, and others are there again."""
        redis: Any = self.cluster.redis
        await redis.flushall()
        for key, dump in self.replica.items():
            await redis.restore(key, 0, dump, replace=True)
        await self.cut_redis_connections()

    async def cut_redis_connections(self) -> None:
        redis: Any = self.cluster.redis
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def stall_redis(self, milliseconds: int) -> None:
        """Longer than a publish waits: nobody knows what of it will be there."""
        redis: Any = self.cluster.redis
        await redis.execute_command("CLIENT", "PAUSE", milliseconds, "WRITE")

    def end_sessions(self, names: str) -> None:
        self.cluster.sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE %s",
            [names],
        )


@dataclass(frozen=True, slots=True)
class Servers:
    postgres_url: str
    redis_url: str
    silent_redis: str


class Machine(RuleBasedStateMachine):
    """One loop, namespace and cluster per example; the servers are shared."""

    servers: Servers

    def __init__(self) -> None:
        super().__init__()
        self.loop = LoopThread()
        self.fresh = 0
        self.world: World | None = None

    @initialize()
    def open(self) -> None:
        namespace = f"stateful-{secrets.token_hex(4)}"
        migrate_database(self.servers.postgres_url, namespace)
        flush(self.servers.redis_url)
        self.world = self.loop.run(open_world(self.servers, namespace))

    @property
    def it(self) -> World:
        assert self.world is not None
        return self.world

    @rule(
        sender=st.integers(0, SENDERS - 1),
        entity=st.integers(0, ENTITIES - 1),
        keys=st.lists(st.integers(-4, KEYS - 1), min_size=1, max_size=8),
        amount=st.sampled_from([1, 1, 1, 2]),
    )
    def send(self, sender: int, entity: int, keys: list[int], amount: int) -> None:
        """Below zero: a key that nobody has used; the others are repeated by all, with the same or another payload."""
        self.loop.run(self.it.send(sender, f"e{entity}", [self._key(key) for key in keys], amount))

    def _key(self, key: int) -> str:
        if key >= 0:
            return f"k{key}"
        self.fresh += 1
        return f"new{self.fresh}"

    @rule(entity=st.integers(0, ENTITIES - 1), key=st.integers(0, KEYS - 1))
    def everybody_sends(self, entity: int, key: int) -> None:
        async def send() -> None:
            for sender in range(SENDERS):
                await self.it.send(sender, f"e{entity}", [f"k{key}"], 1)

        self.loop.run(send())

    @rule(
        sender=st.integers(0, SENDERS - 2),
        entity=st.integers(0, ENTITIES - 1),
        count=st.integers(12, 40),
        every=st.integers(2, 4),
    )
    def send_much_and_lose_some(self, sender: int, entity: int, count: int, every: int) -> None:
        """More than a runner reads at once: what is lost is in the middle of what is not."""

        async def send() -> None:
            await self.it.send(sender, f"e{entity}", [self._key(-1) for _ in range(count)], 1)
            await asyncio.wait([sent.accepting for sent in self.it.sent[-count:]], timeout=PATIENCE)
            await self.it.lose_entries(every)

        self.loop.run(send())

    @precondition(lambda self: len(self.it.runners) < 2)
    @rule()
    def start_runner(self) -> None:
        self.loop.run(self.it.start())

    @precondition(lambda self: bool(self.it.runners))
    @rule()
    def stop_runner(self) -> None:
        self.loop.run(self.it.runners.pop(0).stop())

    @precondition(lambda self: bool(self.it.runners))
    @rule()
    def abort_runner(self) -> None:
        self.loop.run(self.it.runners.pop().abort())

    @rule()
    def flush_redis(self) -> None:
        flush(self.servers.redis_url)

    @rule()
    def replicate(self) -> None:
        self.loop.run(self.it.replicate())

    @rule()
    def fail_over(self) -> None:
        self.loop.run(self.it.fail_over())

    @rule(every=st.integers(1, 3))
    def lose_entries(self, every: int) -> None:
        self.loop.run(self.it.lose_entries(every))

    @rule()
    def cut_redis_connections(self) -> None:
        self.loop.run(self.it.cut_redis_connections())

    @rule(milliseconds=st.sampled_from([60, 150]))
    def stall_redis(self, milliseconds: int) -> None:
        self.loop.run(self.it.stall_redis(milliseconds))

    @rule(names=st.sampled_from(["entityq client %", "entityq"]))
    def end_sessions(self, names: str) -> None:
        """Of the clients, or the leases and pools of the runners."""
        self.it.end_sessions(names)

    @rule()
    def settle(self) -> None:
        self.loop.run(self._settled())

    async def _settled(self) -> None:
        await self.it.settle()
        if self.it.sent:
            self.it.check(await self.it.journals())

    def teardown(self) -> None:
        try:
            if self.world is not None:
                try:
                    self.loop.run(self._settled())
                finally:
                    self.loop.run(self.it.stack.aclose())
        finally:
            self.loop.close()


async def open_world(servers: Servers, namespace: str) -> World:
    stack = AsyncExitStack()
    opening = open_cluster(app, servers.postgres_url, servers.redis_url, namespace, termination_time=5.0)
    cluster = await stack.enter_async_context(opening)
    # Of the examples before.
    cluster.sql.execute("TRUNCATE entityq.outbox, entityq.pending, entityq.entity")
    senders = [await cluster.client() for _ in range(SENDERS - 1)]
    # One that never gets a word through to Redis.
    senders.append(await cluster.client(redis_url=servers.silent_redis))
    world = World(cluster, stack, senders)
    await world.start()
    return world


@pytest.fixture
def servers_of_machine(postgres_url: str, redis_url: str, silent_redis: str) -> Iterator[Servers]:
    yield Servers(postgres_url, redis_url, silent_redis)


@pytest.mark.timeout(120 + 20 * EXAMPLES)
def test_the_promises_hold_through_random_faults(servers_of_machine: Servers) -> None:
    machine = type("MachineOfThisTest", (Machine,), {"servers": servers_of_machine})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            # Time is a part of what happens here: a run cannot be repeated exactly, so it cannot be shrunk.
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
            print_blob=False,
        ),
    )
