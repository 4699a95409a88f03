"""Cancels that meet deaths, frozen and deaf owners, retries and commits: one reply, and the same for every repeat."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entityq import CancelOutcome, EntityQ, Interrupted, Receipt, RetryPolicy, message
from tests.support.live import LiveCluster, Member, live_cluster
from tests.support.processes import CommandLine, Running
from tests.support.stage import Actor
from tests.support.waiting import eventually

LEASE_TIME = 1.5

# The handler tells of itself in files, and waits for one, in whichever process it runs.
APP = """
import asyncio
import os
import pathlib

from entityq import Entity, EntityQ, message

app = EntityQ("cancels")
HERE = pathlib.Path(__file__).parent


@app.entity
class Ledger(Entity):
    entries: list[str] = []

    @message(primary_key="key")
    async def add(self, key: str) -> list[str]:
        (HERE / f"entered-{os.getpid()}").touch()
        try:
            while not (HERE / "gate").exists():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            with (HERE / f"interrupted-{os.getpid()}").open("a") as file:
                file.write("x")
            raise
        self.entries.append(key)
        return self.entries
"""
SEND = ("send", "-A", "ledger:app", "Ledger/l-1", "add", "-k", '{"key": "k-1"}')


def start_worker(entityq: CommandLine, directory: Path, name: str) -> tuple[Running, psutil.Process]:
    """The worker, and its one runner."""
    lease_time = {"ENTITYQ_LEASE_TIME": str(LEASE_TIME)}
    worker = entityq.spawn("worker", "-A", "ledger:app", "-c", "1", "-n", name, cwd=directory, env=lease_time)
    worker.wait_for(r"runner\.joined")
    (runner,) = [child for child in worker.children if "entityq_cli" in child.cmdline()]
    return worker, runner


@dataclass
class Frozen:
    """A runner that froze in the middle of the request's handler, before the request was cancelled."""

    worker: Running
    runner: psutil.Process
    request_id: str
    directory: Path

    def ran_in(self) -> list[Path]:
        return sorted(self.directory.glob("entered-*"))


def freeze_and_cancel(entityq: CommandLine, directory: Path) -> Frozen:
    (directory / "ledger.py").write_text(APP)
    worker, runner = start_worker(entityq, directory, "first")
    request_id = entityq.run(*SEND, cwd=directory).stdout.strip()
    eventually((directory / f"entered-{runner.pid}").exists, 20, "the turn in the first runner")
    runner.send_signal(signal.SIGSTOP)
    cancelled = entityq.run("cancel", "-A", "ledger:app", request_id, cwd=directory)
    assert (cancelled.code, cancelled.stdout) == (0, "requested\n"), cancelled.stderr
    return Frozen(worker, runner, request_id, directory)


def require_interrupted(entityq: CommandLine, frozen: Frozen) -> None:
    """For everybody who repeats the key, and in one process only was it ever run."""
    repeated = entityq.run(*SEND, "--wait", "--timeout", "30", cwd=frozen.directory)
    assert repeated.code == 1, repeated.stderr
    assert "was cancelled" in repeated.stderr
    assert len(frozen.ran_in()) == 1
    again = entityq.run("cancel", "-A", "ledger:app", frozen.request_id, cwd=frozen.directory)
    assert again.stdout == "cancelled\n"


def test_the_owner_is_killed_before_it_has_heard_of_the_cancel(entityq: CommandLine, tmp_path: Path) -> None:
    frozen = freeze_and_cancel(entityq, tmp_path)
    frozen.worker.kill()
    start_worker(entityq, tmp_path, "second")
    require_interrupted(entityq, frozen)
    assert not (tmp_path / f"interrupted-{frozen.runner.pid}").exists()


def test_the_owner_hears_of_the_cancel_when_it_wakes_up(entityq: CommandLine, tmp_path: Path) -> None:
    """Nobody evicts it: there is nobody else."""
    frozen = freeze_and_cancel(entityq, tmp_path)
    frozen.runner.send_signal(signal.SIGCONT)
    require_interrupted(entityq, frozen)
    assert (tmp_path / f"interrupted-{frozen.runner.pid}").read_text() == "x"


def test_the_owner_is_evicted_before_it_wakes_up(entityq: CommandLine, tmp_path: Path) -> None:
    frozen = freeze_and_cancel(entityq, tmp_path)
    try:
        other, _ = start_worker(entityq, tmp_path, "other")
        other.wait_for(r"runner\.evicted incarnation=(\d+) name=first")
        require_interrupted(entityq, frozen)
    finally:
        frozen.runner.send_signal(signal.SIGCONT)
    frozen.worker.wait_for(r"leases\.lost")
    require_interrupted(entityq, frozen)


# ----- in this process


class Teller(Actor):
    """A handler that is told how to end."""

    entries: list[str] = []

    @message(primary_key="key")
    async def write(self, key: str, how: str = "", pause: float = 0.0) -> list[str]:
        self.entries.append(key)
        await self._stage.enter(f"write {self.id} {key}", "g")
        await asyncio.sleep(pause)
        if how == "defect" and self.context.attempt < 3:
            raise ValueError(key)
        return self.entries

    @message
    async def fail(self) -> None:
        await self._stage.enter("fail", "g")
        raise ValueError("again")

    @message
    async def read(self) -> list[str]:
        return self.entries


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncGenerator[LiveCluster]:
    async with live_cluster(postgres_url, redis_url, namespace) as live:
        yield live


@pytest.mark.parametrize("waits", [False, True], ids=["running", "waiting"])
async def test_a_cancel_that_nobody_has_told_is_found_by_the_sweep(
    cluster: LiveCluster, *, waits: bool
) -> None:
    app = cluster.app(sweep_interval=0.1)
    teller = cluster.actor(app, Teller).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await teller.write.send("1"), await teller.write.send("2")]
    await cluster.stage.saw("write a 1")
    lost = receipts[waits]
    # As a notification that was lost leaves it.
    await cluster.rows("UPDATE pending SET cancelled = true WHERE request_id = %s", lost.request_id)
    with pytest.raises(Interrupted):
        await lost
    cluster.stage.open("g")
    assert await receipts[not waits] == ["1" if waits else "2"]


async def test_a_cancel_is_not_lost_in_a_failover(cluster: LiveCluster) -> None:
    """The next owner reads the mark, answers without running, and goes on in order."""
    app = cluster.app()
    teller = cluster.actor(app, Teller).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await teller.write.send(str(number)) for number in range(4)]
    await cluster.stage.saw("write a 0")
    await cluster.crash(member)
    for cancelled in (0, 2):
        assert await receipts[cancelled].cancel() is CancelOutcome.REQUESTED
    cluster.stage.open("g")
    await cluster.start(app, "r2")
    assert [await receipts[1], await receipts[3]] == [["1"], ["1", "3"]]
    for cancelled in (0, 2):
        with pytest.raises(Interrupted):
            await receipts[cancelled]
    assert cluster.stage.lines("write a ") == ["0", "1", "3"]


@pytest.mark.parametrize("head_of_line", ["block", "park"])
async def test_what_fails_while_it_is_cancelled_is_not_set_back(
    cluster: LiveCluster, head_of_line: str
) -> None:
    """The runner has not heard of it yet."""
    app = cluster.app()
    never = RetryPolicy(initial=1e7, maximum=1e7, total=1e9, attempts=3)
    teller = cluster.actor(app, Teller, retry=never, head_of_line=head_of_line).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    receipt = await teller.fail.send()
    await cluster.stage.saw("fail")
    await cluster.rows("UPDATE pending SET cancelled = true")
    cluster.stage.open("g")
    with pytest.raises(Interrupted):
        await receipt
    assert cluster.stage.journal == ["fail"]
    assert await cluster.rows("SELECT count(*) FROM timer") == [0]


# ----- at any moment


@dataclass(frozen=True)
class Step:
    """`what`: send, cancel, crash; `number`: which entity, which request."""

    what: str
    number: int = 0
    how: str = ""
    pause: float = 0.0


SENDS = st.builds(
    Step,
    what=st.just("send"),
    number=st.integers(0, 2),
    how=st.sampled_from(["", "", "defect"]),
    pause=st.sampled_from([0.0, 0.0, 0.01, 0.05]),
)
CANCELS = st.builds(
    Step, what=st.just("cancel"), number=st.integers(0, 30), pause=st.sampled_from([0.0, 0.0, 0.003, 0.02])
)
PLANS = st.lists(st.one_of(SENDS, SENDS, CANCELS, st.just(Step("crash"))), min_size=10, max_size=40)
QUICK = RetryPolicy(initial=0.02, factor=1.0, maximum=0.02, attempts=4)


@dataclass
class Play:
    """One plan, on a cluster of its own entities."""

    cluster: LiveCluster
    app: EntityQ
    teller: type[Teller]
    member: Member
    prefix: str
    sent: list[tuple[str, Receipt[list[str]]]] = field(default_factory=list[tuple[str, Receipt[list[str]]]])
    outcomes: dict[int, CancelOutcome] = field(default_factory=dict[int, CancelOutcome])
    crashes: int = 0

    async def step(self, step: Step) -> None:
        if step.what == "send":
            entity = f"{self.prefix}-{step.number}"
            key = f"k{len(self.sent)}"
            receipt = await self.teller.at(entity).write.send(key, how=step.how, pause=step.pause)
            self.sent.append((entity, receipt))
        elif step.what == "cancel" and self.sent:
            await asyncio.sleep(step.pause)
            number = step.number % len(self.sent)
            self.outcomes[number] = await self.sent[number][1].cancel()
        elif step.what == "crash" and self.crashes < 2:
            self.crashes += 1
            await self.cluster.crash(self.member)
            self.member = await self.cluster.start(self.app, f"{self.prefix}-{self.crashes}", shards=0)

    async def check(self) -> None:
        applied: dict[str, list[str]] = {}
        for number, (entity, receipt) in enumerate(self.sent):
            key = f"k{number}"
            first, repeat = await reply_of(receipt), await reply_of(receipt)
            assert first == repeat
            outcome = self.outcomes.get(number)
            if first is None:
                assert outcome in (CancelOutcome.REQUESTED, CancelOutcome.CANCELLED)
            else:
                assert outcome is not CancelOutcome.CANCELLED
                assert first[-1] == key
                applied.setdefault(entity, []).append(key)
                assert first == applied[entity]
        for entity, keys in applied.items():
            assert await self.teller.at(entity).read() == keys
        assert await self.cluster.pending() == 0


async def reply_of(receipt: Receipt[list[str]]) -> list[str] | None:
    """None: interrupted."""
    try:
        return await receipt
    except Interrupted:
        return None


@asynccontextmanager
async def playing(urls: Mapping[str, str], prefix: str) -> AsyncGenerator[Play]:
    async with live_cluster(urls["postgres"], urls["redis"], urls["namespace"], ask_timeout=30.0) as cluster:
        app = cluster.app()
        teller = cluster.actor(app, Teller, retry=QUICK)
        yield Play(cluster, app, teller, await cluster.start(app, prefix), prefix)


async def play(urls: Mapping[str, str], prefix: str, plan: Sequence[Step]) -> None:
    async with playing(urls, prefix) as scene:
        for step in plan:
            await scene.step(step)
        await scene.check()


def test_there_is_one_reply_whatever_comes_together(
    postgres_url: str, redis_url: str, namespace: str
) -> None:
    urls = {"postgres": postgres_url, "redis": redis_url, "namespace": namespace}
    examples = iter(range(1_000))

    @settings(
        max_examples=8,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        derandomize=False,
    )
    @given(PLANS)
    def run(plan: list[Step]) -> None:
        asyncio.run(play(urls, f"p{next(examples)}", plan))

    run()
