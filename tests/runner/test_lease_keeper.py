"""Several runners that share the shards of a cluster, on a real Postgres and Valkey."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.facts import Facts
from entityq.postgres.lease_session import LeaseSession
from entityq.redis.connect import open_client, open_connection
from entityq.redis.control import ControlChannel
from entityq.redis.keys import Keys
from entityq.runner.lease_keeper import LeaseKeeper
from tests.support.leases import Cluster, open_cluster
from tests.support.servers import Connection
from tests.support.waiting import eventually_async

# Longer than any test: what happens within a test was woken, not polled.
NO_POLL = 60.0
# As a fallback, for tests that are about something else: a message may be lost on a busy machine.
SLOW_POLL = 1.0
FAST_POLL = 0.05


@dataclass(slots=True)
class Owner:
    """Records what the keeper says. A shard in `busy` is released when its event is set."""

    epochs: dict[int, int] = field(default_factory=dict[int, int])
    busy: dict[int, asyncio.Event] = field(default_factory=dict[int, asyncio.Event])
    abandoned: list[int] = field(default_factory=list[int])
    releases: list[int] = field(default_factory=list[int])
    reasons: list[str] = field(default_factory=list[str])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def acquired(self, shard_id: int, epoch: int) -> None:
        assert shard_id not in self.epochs
        self.epochs[shard_id] = epoch
        self.changed.set()

    async def release(self, shard_id: int) -> None:
        self.releases.append(shard_id)
        self.changed.set()
        try:
            if shard_id in self.busy:
                await self.busy[shard_id].wait()
        except asyncio.CancelledError:
            self.abandoned.append(shard_id)
            raise
        finally:
            self.epochs.pop(shard_id, None)  # gone already when the session was lost
            self.changed.set()

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self.epochs.clear()
        self.changed.set()

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@dataclass(slots=True)
class Runner:
    session: LeaseSession
    keeper: LeaseKeeper
    owner: Owner
    running: asyncio.Task[None]
    control: ControlChannel

    @property
    def shards(self) -> set[int]:
        return set(self.owner.epochs)


@dataclass(slots=True)
class Runners:
    """Runners of one cluster in this process, each with a connection of its own to everything."""

    cluster: Cluster
    redis_url: str

    async def start(
        self,
        *,
        groups: tuple[str, ...] = ("default",),
        poll: float = SLOW_POLL,
        termination_time: float = 5.0,
        listening: bool = True,
    ) -> Runner:
        stack = self.cluster.stack
        client = await stack.enter_async_context(open_client(self.redis_url))
        channel = Keys(self.cluster.facts.namespace).control_channel()
        control = ControlChannel(client, open_connection(self.redis_url), channel)
        if listening:
            receiving = asyncio.create_task(control.run())
            stack.push_async_callback(_cancelled, receiving)
            async with asyncio.timeout(5):
                await control.subscribed.wait()
        session = await self.cluster.session(groups=groups)
        owner = Owner()
        keeper = LeaseKeeper(
            session,
            CurrentFacts(self.cluster.facts, self._unchanged),
            groups,
            owner,
            control,
            termination_time=termination_time,
            poll=poll,
        )
        running = asyncio.create_task(keeper.run())
        stack.push_async_callback(_cancelled, running)
        return Runner(session, keeper, owner, running, control)

    async def _unchanged(self) -> Facts:
        return self.cluster.facts


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@asynccontextmanager
async def open_runners(
    url: str, redis_url: str, namespace: str, *, groups: tuple[str, ...] = ("default",)
) -> AsyncGenerator[Runners]:
    async with open_cluster(url, namespace, groups=groups) as cluster:
        yield Runners(cluster, redis_url)


@pytest.fixture
async def runners(postgres_url: str, redis_url: str, namespace: str) -> AsyncGenerator[Runners]:
    async with open_runners(postgres_url, redis_url, namespace) as opened:
        yield opened


def all_shards(runners: Runners) -> set[int]:
    return {
        group.first_shard + number
        for group in runners.cluster.facts.groups.values()
        for number in range(group.shards)
    }


async def shared_out(runners: Runners, *among: Runner) -> None:
    """Until every shard has an owner and each of these has some."""
    everything = all_shards(runners)
    async with asyncio.timeout(5):
        while True:
            taken = {shard for runner in among for shard in runner.shards}
            if taken == everything and all(runner.shards for runner in among):
                return
            for runner in among:
                runner.owner.changed.clear()
            waits = [asyncio.create_task(runner.owner.changed.wait()) for runner in among]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


async def test_one_runner_takes_everything(runners: Runners) -> None:
    a = await runners.start()
    await shared_out(runners, a)
    assert a.owner.epochs == dict.fromkeys(all_shards(runners), 1)


async def test_a_second_runner_is_given_its_part_by_the_control_channel(runners: Runners) -> None:
    a = await runners.start(poll=NO_POLL)
    await shared_out(runners, a)
    b = await runners.start(poll=NO_POLL)
    await shared_out(runners, a, b)
    assert a.shards.isdisjoint(b.shards)
    assert await a.session.held() == a.shards
    assert await b.session.held() == b.shards
    assert set(b.owner.epochs.values()) == {2}
    assert set(a.owner.epochs.values()) == {1}


async def test_without_the_channel_polling_does_the_same(runners: Runners) -> None:
    a = await runners.start(poll=FAST_POLL, listening=False)
    await shared_out(runners, a)
    b = await runners.start(poll=FAST_POLL, listening=False)
    await shared_out(runners, a, b)


async def test_a_killed_session_is_told_and_its_shards_are_taken(
    runners: Runners, server: Connection
) -> None:
    a = await runners.start(poll=FAST_POLL)
    b = await runners.start(poll=FAST_POLL)
    await shared_out(runners, a, b)
    server.execute("SELECT pg_terminate_backend(%s)", [a.session.backend.pid])
    await b.owner.until(lambda: b.shards == all_shards(runners), 2)
    await asyncio.wait_for(a.running, 1)
    assert len(a.owner.reasons) == 1
    assert "closed the connection" in a.owner.reasons[0]
    assert sorted(set(b.owner.epochs.values())) in ([1, 2], [2], [1, 2, 3])


async def test_a_busy_shard_is_handed_over_when_it_is_free(runners: Runners) -> None:
    a = await runners.start()
    await shared_out(runners, a)
    a.owner.busy = {shard: asyncio.Event() for shard in a.shards}
    b = await runners.start()
    await a.owner.until(lambda: len(a.owner.releases) >= 4)
    leaving = list(a.owner.releases)
    assert not b.shards
    assert a.shards == all_shards(runners)
    a.owner.busy[leaving[0]].set()
    await b.owner.until(lambda: b.shards == {leaving[0]})
    for event in a.owner.busy.values():
        event.set()
    await b.owner.until(lambda: b.shards == set(leaving))


async def test_what_is_free_at_once_is_unlocked_and_told_together(runners: Runners) -> None:
    a = await runners.start(poll=NO_POLL)
    await shared_out(runners, a)
    last = min(a.shards)
    a.owner.busy = {last: asyncio.Event()}
    b = await runners.start(poll=NO_POLL)
    await shared_out(runners, a, b)
    told: list[str] = []
    with b.control.listening(lambda message: told.append(message.kind)):
        drain = asyncio.create_task(a.keeper.drain())
        await b.owner.until(lambda: b.shards == all_shards(runners) - {last})
        assert 1 <= told.count("released") <= 2
        a.owner.busy[last].set()
        await asyncio.wait_for(drain, 1)
        await b.owner.until(lambda: b.shards == all_shards(runners))


async def test_a_shard_whose_lock_is_still_held_is_tried_again_soon(runners: Runners) -> None:
    """Its owner has left, its backend has not ended yet, and nobody says when it does."""
    gone = await runners.cluster.session()
    free = min(all_shards(runners))
    await gone.acquire(all_shards(runners) - {free})
    await gone.drain()
    a = await runners.start(poll=NO_POLL)
    await a.owner.until(lambda: a.shards == {free})
    gone.end("the test ends it")
    await a.owner.until(lambda: a.shards == all_shards(runners))


async def test_after_a_change_the_next_look_comes_sooner_than_the_poll(runners: Runners) -> None:
    """Who joined can have died before any heart had seen it: then nobody tells of its end."""
    a = await runners.start(poll=8.0, listening=False)
    everything = all_shards(runners)
    await a.owner.until(lambda: a.shards == everything)
    b = await runners.cluster.session()
    a.keeper.nudge()
    await a.owner.until(lambda: len(a.owner.releases) > 0)
    b.end("the test ends it")
    await a.owner.until(lambda: a.shards == everything, 6.0)


async def test_what_outlives_the_termination_time_is_abandoned(runners: Runners) -> None:
    a = await runners.start(termination_time=0.1)
    await shared_out(runners, a)
    a.owner.busy = {shard: asyncio.Event() for shard in a.shards}
    b = await runners.start()
    await shared_out(runners, a, b)
    assert set(a.owner.abandoned) == b.shards


async def test_draining_hands_everything_over_while_the_runner_stays(runners: Runners) -> None:
    a, b = await runners.start(), await runners.start()
    await shared_out(runners, a, b)
    last = min(a.shards)
    a.owner.busy = {last: asyncio.Event()}
    drain = asyncio.create_task(a.keeper.drain())
    await b.owner.until(lambda: b.shards == all_shards(runners) - {last})
    assert not drain.done()
    members = await b.session.members()
    assert [member.draining for member in members] == [True, False]
    a.owner.busy[last].set()
    await asyncio.wait_for(drain, 1)
    await asyncio.wait_for(a.running, 1)
    await b.owner.until(lambda: b.shards == all_shards(runners))
    assert a.owner.reasons == []
    assert not a.session.lost.is_set()


async def test_draining_the_last_runner_frees_its_shards(runners: Runners) -> None:
    a = await runners.start()
    await shared_out(runners, a)
    await asyncio.wait_for(a.keeper.drain(), 1)
    assert a.shards == set()
    assert await a.session.held() == set()


async def test_a_drain_ends_when_the_session_does(runners: Runners, server: Connection) -> None:
    a = await runners.start()
    await shared_out(runners, a)
    a.owner.busy = {shard: asyncio.Event() for shard in a.shards}
    drain = asyncio.create_task(a.keeper.drain())
    await a.owner.until(lambda: len(a.owner.releases) == len(all_shards(runners)))
    server.execute("SELECT pg_terminate_backend(%s)", [a.session.backend.pid])
    await asyncio.wait_for(drain, 1)
    await asyncio.wait_for(a.running, 1)
    assert len(a.owner.reasons) == 1


async def test_shards_that_nobody_else_serves_are_kept(
    postgres_url: str, redis_url: str, namespace: str
) -> None:
    groups = ("default", "mail")
    async with open_runners(postgres_url, redis_url, namespace, groups=groups) as runners:
        mail = runners.cluster.facts.groups["mail"]
        of_mail = set(range(mail.first_shard, mail.first_shard + mail.shards))
        a = await runners.start(groups=groups)
        await shared_out(runners, a)
        b = await runners.start()
        await shared_out(runners, a, b)
        assert of_mail <= a.shards
        assert of_mail.isdisjoint(b.shards)


async def test_a_runner_whose_row_is_gone_gives_up(runners: Runners, server: Connection) -> None:
    a = await runners.start(poll=FAST_POLL)
    await shared_out(runners, a)
    await a.session.execute(b"DELETE FROM runner")
    await asyncio.wait_for(a.running, 2)
    assert a.owner.reasons == ["the runner's own row is gone"]


async def test_a_lock_that_is_gone_is_noticed(runners: Runners) -> None:
    a = await runners.start(poll=FAST_POLL)
    await shared_out(runners, a)
    await a.session.execute(
        b"SELECT pg_advisory_unlock(classid::bigint::bit(32)::integer, objid::bigint::integer) FROM pg_locks"
        b" WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objid = 3"
        b" AND classid = (SELECT classid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        b" GROUP BY 1 HAVING count(*) > 1)"
    )
    await asyncio.wait_for(a.running, 2)
    assert a.owner.reasons == [f"the lock of shard {min(all_shards(runners)) + 3} is gone"]


async def test_a_shard_that_is_given_up_for_one_who_left_meanwhile_is_taken_again_at_once(
    runners: Runners,
) -> None:
    a = await runners.start(poll=NO_POLL)
    everything = all_shards(runners)
    await a.owner.until(lambda: a.shards == everything)
    a.owner.busy = {shard: asyncio.Event() for shard in everything}
    b = await runners.start(poll=NO_POLL)
    await a.owner.until(lambda: len(a.owner.releases) > 0)
    await b.keeper.drain()
    await b.session.close()
    a.keeper.nudge()

    async def knows() -> bool:
        return len(a.keeper.members) == 1

    await eventually_async(knows, 5.0, "b has left")
    given_up = len(a.owner.releases)
    for free in a.owner.busy.values():
        free.set()
    await a.owner.until(lambda: sorted(a.owner.epochs.values()).count(2) == given_up)
    assert a.shards == everything
