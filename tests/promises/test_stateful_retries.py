"""Random failures, owners that stop, die and come, against a model: what fails for a while is applied once and in its
place, what fails for ever is a dead letter, and nothing overtakes.

More examples: `make soak`, or SOAK_EXAMPLES=500.
"""

import os
import secrets
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

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

from entityq import Entity, EntityDefect, EntityQ, Receipt, RetryPolicy, message
from tests.promises.cluster import Cluster, Running, Sending, open_cluster
from tests.promises.test_stateful import LoopThread
from tests.support.servers import flush, migrate_database

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "6"))
STEPS = 15
ATTEMPTS = 4
ENTITIES = 3

app = EntityQ("retries")
POLICY = RetryPolicy(initial=0.02, factor=2.0, maximum=0.2, attempts=ATTEMPTS)

# By entity and key: how often the handler ran, and the numbers that it was told.
RUNS: Counter[tuple[str, str]] = Counter()
ATTEMPTS_TOLD: defaultdict[tuple[str, str], list[int]] = defaultdict(list)


class Step(Entity):
    """It fails so many times as the key says; how often it did is in the process, as an outage outside would be."""

    applied: list[str] = []

    @message(primary_key="key")
    async def apply(self, key: str, failures: int) -> list[str]:
        run = (self.id, key)
        RUNS[run] += 1
        ATTEMPTS_TOLD[run].append(self.context.attempt)
        self.applied.append(key)
        if RUNS[run] <= failures:
            raise ConnectionError(key)
        return self.applied


@app.entity(retry=POLICY)
class Block(Step):
    pass


@app.entity(retry=POLICY, head_of_line="park")
class Park(Step):
    pass


@dataclass(slots=True)
class Sent:
    entity: str
    key: str
    failures: int
    receipt: Receipt[list[str]]
    reply: list[str] | None = None

    @property
    def hopeless(self) -> bool:
        return self.failures >= ATTEMPTS


@dataclass(slots=True)
class World:
    cluster: Cluster
    stack: AsyncExitStack
    client: Sending
    sent: list[Sent] = field(default_factory=list[Sent])
    runners: list[Running] = field(default_factory=list[Running])
    crashes: int = 0

    async def send(self, kind: type[Step], entity: str, failures: list[int]) -> None:
        handle = self.client.at(kind, entity)
        for fails in failures:
            key = f"{len(self.sent)}"
            receipt = await handle.apply.send(key, fails)
            self.sent.append(Sent(f"{kind.__name__}/{entity}", key, fails, receipt))

    async def start(self) -> None:
        self.runners.append(await self.cluster.start(f"runner {len(self.cluster.running)}", prefetch=6))

    async def settle(self) -> None:
        if not self.runners:
            await self.start()
        for sent in self.sent:
            try:
                sent.reply = await sent.receipt
            except EntityDefect:
                sent.reply = None
        query = b"SELECT (SELECT count(*) FROM entityq.pending) + (SELECT count(*) FROM entityq.timer)"
        assert self.cluster.count(query) == 0
        self.check()

    def check(self) -> None:
        dead = {
            str(row[0])
            for row in self.cluster.sql.execute("SELECT request_id::text FROM entityq.dead_letter").fetchall()
        }
        for sent in self.sent:
            given_up = str(sent.receipt.request_id) in dead
            assert (sent.reply is None) == given_up, sent
            assert given_up == sent.hopeless, sent
            told = ATTEMPTS_TOLD[sent.entity.split("/")[1], sent.key]
            assert told == sorted(told), sent
            assert len(told) <= ATTEMPTS + 3 * self.crashes, sent
        self._check_order()

    def _check_order(self) -> None:
        for entity in {sent.entity for sent in self.sent}:
            replies = [sent for sent in self.sent if sent.entity == entity and sent.reply is not None]
            longest = list[str]() if not replies else max((sent.reply or [] for sent in replies), key=len)
            assert sorted(longest) == sorted(sent.key for sent in replies), entity
            assert all(sent.reply == longest[: longest.index(sent.key) + 1] for sent in replies), entity
            if entity.startswith("Block"):
                assert longest == [sent.key for sent in replies], entity


class Machine(RuleBasedStateMachine):
    servers: tuple[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = LoopThread()
        self.world: World | None = None

    @initialize()
    def open(self) -> None:
        postgres_url, redis_url = self.servers
        namespace = f"retries-{secrets.token_hex(4)}"
        migrate_database(postgres_url, namespace)
        flush(redis_url)
        self.world = self.loop.run(open_world(postgres_url, redis_url, namespace))

    @property
    def it(self) -> World:
        assert self.world is not None
        return self.world

    @rule(
        kind=st.sampled_from([Block, Block, Park]),
        entity=st.integers(0, ENTITIES - 1),
        failures=st.lists(st.sampled_from([0, 0, 1, 2, 3, 99]), min_size=1, max_size=6),
    )
    def send(self, kind: type[Step], entity: int, failures: list[int]) -> None:
        self.loop.run(self.it.send(kind, f"{kind.__name__} {entity}", failures))

    @precondition(lambda self: len(self.it.runners) < 2)
    @rule()
    def start_runner(self) -> None:
        self.loop.run(self.it.start())

    @precondition(lambda self: bool(self.it.runners))
    @rule()
    def stop_runner(self) -> None:
        self.loop.run(self.it.runners.pop(0).stop())

    @precondition(lambda self: bool(self.it.runners) and self.it.crashes < 2)
    @rule()
    def crash_runner(self) -> None:
        """Not so often that innocent requests could be suspected for good."""
        self.it.crashes += 1
        self.loop.run(self.it.runners.pop().abort())

    @rule()
    def flush_redis(self) -> None:
        flush(self.servers[1])

    @rule()
    def settle(self) -> None:
        self.loop.run(self.it.settle())

    def teardown(self) -> None:
        try:
            if self.world is not None:
                try:
                    self.loop.run(self.it.settle())
                finally:
                    self.loop.run(self.it.stack.aclose())
        finally:
            self.loop.close()


async def open_world(postgres_url: str, redis_url: str, namespace: str) -> World:
    RUNS.clear()
    ATTEMPTS_TOLD.clear()
    stack = AsyncExitStack()
    opening = open_cluster(app, postgres_url, redis_url, namespace, termination_time=5.0)
    cluster = await stack.enter_async_context(opening)
    tables = "entityq.outbox, entityq.pending, entityq.timer, entityq.entity, entityq.dead_letter"
    cluster.sql.execute(f"TRUNCATE {tables}".encode())
    world = World(cluster, stack, await cluster.client())
    await world.start()
    return world


@pytest.mark.timeout(120 + 20 * EXAMPLES)
def test_what_fails_is_applied_once_or_given_up(postgres_url: str, redis_url: str) -> None:
    machine = type("MachineOfThisTest", (Machine,), {"servers": (postgres_url, redis_url)})
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
