"""Schedules on a cluster: fired once, paused, changed by a deploy, caught up with."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import pytest

from entityq import EntityQ, UnknownSchedule, message
from entityq.postgres.connect import connect
from entityq.postgres.cron import StoredSchedule, read_schedules
from entityq.task import Task
from tests.support.live import LiveCluster, live_cluster, soon
from tests.support.stage import Actor

EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 29 2 *"
SECOND = timedelta(seconds=1)


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncGenerator[LiveCluster]:
    async with live_cluster(postgres_url, redis_url, namespace) as cluster:
        yield cluster


class Ledger(Actor):
    closed: list[str] = []

    @message(primary_key="day")
    async def close(self, note: str, day: str) -> int:
        self.closed.append(f"{note} {day}")
        return len(self.closed)

    @message(persisted=False)
    async def read(self) -> list[str]:
        return self.closed


class Ticks:
    """What was run. A run goes on until its gate is open."""

    def __init__(self) -> None:
        self.instants: list[datetime] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def app(self, cluster: LiveCluster, expression: str = EVERY_SECOND, **options: Any) -> EntityQ:
        """An app with the schedule "tick"."""
        app = cluster.app()
        app.cron(expression, instant="instant", **options)(self.task(app, "tick"))
        return app

    def task(self, app: EntityQ, name: str) -> Task[[datetime], None, Any]:
        @app.task(name=name)
        async def tick(instant: datetime) -> None:
            self.instants.append(instant)
            await self.gate.wait()

        return tick

    async def more(self, count: int) -> None:
        """Until there are so many more than now."""
        await self.reach(len(self.instants) + count)

    async def reach(self, count: int) -> None:
        async def enough() -> bool:
            return len(self.instants) >= count

        await soon(enough, f"{count} runs")


async def stored(cluster: LiveCluster, postgres_url: str) -> StoredSchedule | None:
    async with await connect(postgres_url, schema="entityq") as connection:
        found = await read_schedules(connection, cluster.namespace)
    return found[0] if found else None


async def test_each_instant_is_run_once_also_when_its_owner_dies(cluster: LiveCluster) -> None:
    ticks = Ticks()
    app = ticks.app(cluster, catch_up="all")
    first = await cluster.start(app, "r1")
    await ticks.more(2)
    await cluster.start(app, "r2", shards=0)
    await cluster.crash(first)
    await ticks.more(2)
    start, *_ = ticks.instants
    assert ticks.instants == [start + number * SECOND for number in range(len(ticks.instants))]
    assert start.microsecond == 0


async def test_a_message_of_an_entity(cluster: LiveCluster) -> None:
    """Its own primary key is the instant, as text."""
    app = cluster.app()
    ledger = cluster.actor(app, Ledger)
    app.cron(EVERY_SECOND, arguments={"note": "closed"}, instant="day")(ledger.at("main").close)
    assert app.cron.names == ["Ledger.close"]
    await cluster.start(app)

    async def closed() -> list[str]:
        return await ledger.at("main").read()

    first, *_ = await soon(closed, "a run")
    note, instant = first.split(" ")
    assert note == "closed"
    assert datetime.fromisoformat(instant).utcoffset() == timedelta(0)
    assert await ledger.at("main").close(note="closed", day=instant) == 1  # the reply to the first one


async def test_paused_and_resumed(cluster: LiveCluster, postgres_url: str) -> None:
    ticks = Ticks()
    app = ticks.app(cluster, catch_up="all")
    await cluster.start(app)
    schedule = app.cron.at("tick")
    await ticks.more(1)
    await schedule.pause()
    await schedule.pause()
    known = await stored(cluster, postgres_url)
    assert known is not None
    assert (known.paused, known.next_at) == (True, None)

    async def timer_is_gone() -> bool:
        return await cluster.rows("SELECT count(*) FROM timer") == [0] and await cluster.pending() == 0

    await soon(timer_is_gone, "the end of the timer that was armed")
    before = list(ticks.instants)
    assert isinstance(await schedule.run(), int)
    await ticks.reach(len(before) + 1)
    (now,) = await cluster.rows("SELECT clock_timestamp()")
    await schedule.resume()
    await schedule.resume()
    await ticks.more(2)
    assert ticks.instants[: len(before)] == before
    following = ticks.instants[len(before) + 1 :]
    assert following[0] > now
    assert following == [following[0] + number * SECOND for number in range(len(following))]


async def test_another_expression_at_a_deploy(cluster: LiveCluster, postgres_url: str) -> None:
    old, new = Ticks(), Ticks()
    member = await cluster.start(old.app(cluster, SELDOM))

    async def armed() -> bool:
        return await stored(cluster, postgres_url) is not None

    await soon(armed, "the schedule")
    await cluster.stop(member)
    member = await cluster.start(new.app(cluster), "r2")
    await new.more(2)
    await cluster.stop(member)
    await cluster.start(old.app(cluster, SELDOM), "r3")

    async def seldom() -> bool:
        known = await stored(cluster, postgres_url)
        return known is not None and known.expression == SELDOM

    await soon(seldom, "the expression of before")
    assert old.instants == []


async def test_a_removed_schedule_stops(cluster: LiveCluster, postgres_url: str) -> None:
    """Also with code that knows no schedules at all: nothing is left waiting for it."""
    ticks = Ticks()
    member = await cluster.start(ticks.app(cluster))
    await ticks.more(1)
    await cluster.stop(member)
    app = cluster.app()
    ticks.task(app, "tick")
    await cluster.start(app, "r2")

    async def nothing_waits() -> bool:
        timers = await cluster.rows("SELECT count(*) FROM timer")
        return timers == [0] and await cluster.pending() == 0

    await soon(nothing_waits, "the end of the schedule")
    assert await stored(cluster, postgres_url) is None


async def test_a_lost_timer_is_armed_again_by_the_next_owner(cluster: LiveCluster) -> None:
    app = Ticks().app(cluster, SELDOM)
    member = await cluster.start(app)

    async def armed() -> list[int]:
        return await cluster.rows("SELECT request_id FROM timer")

    (first,) = await soon(armed, "the timer")
    await app.cancel(first)
    assert await armed() == []
    await cluster.stop(member)
    await cluster.start(app, "r2")
    (second,) = await soon(armed, "another timer")
    assert second != first


async def test_two_versions_side_by_side_double_no_instant(cluster: LiveCluster) -> None:
    """The schedule goes from one to the other and back, as in a rolling deploy."""
    ticks = Ticks()
    versions = [ticks.app(cluster, catch_up="all"), ticks.app(cluster, "*/1 * * * * *", catch_up="all")]
    members = [await cluster.start(versions[0], "r0")]
    for number in (1, 2, 3):
        await ticks.more(1)
        members.append(await cluster.start(versions[number % 2], f"r{number}", shards=0))
        await cluster.stop(members.pop(0))
    await ticks.more(2)
    start, *_ = ticks.instants
    assert ticks.instants == [start + number * SECOND for number in range(len(ticks.instants))]


async def test_what_was_missed(cluster: LiveCluster) -> None:
    """While nobody ran for some seconds: none, the newest, or all of them."""
    policies: tuple[Literal["skip", "last", "all"], ...] = ("skip", "last", "all")
    runs = {policy: Ticks() for policy in policies}
    app = cluster.app()
    for policy in policies:
        task = runs[policy].task(app, policy)
        app.cron(EVERY_SECOND, instant="instant", catch_up=policy, grace=1.5)(task)
    member = await cluster.start(app)
    await asyncio.gather(*(ticks.more(1) for ticks in runs.values()))
    await cluster.stop(member)
    before = {policy: len(ticks.instants) for policy, ticks in runs.items()}

    async def missed() -> bool:
        query = "SELECT count(*) FROM timer WHERE due_at < clock_timestamp() - interval '4 s'"
        return await cluster.rows(query) == [3]

    await soon(missed, "instants that were missed")
    await cluster.start(app, "r2")
    await asyncio.gather(*(ticks.more(3) for ticks in runs.values()))
    gaps = {
        policy: [later - earlier for earlier, later in pairwise(sorted(ticks.instants)[before[policy] - 1 :])]
        for policy, ticks in runs.items()
    }
    assert set(gaps["all"]) == {SECOND}
    for policy in ("skip", "last"):
        assert gaps[policy][0] >= 3 * SECOND
        assert set(gaps[policy][1:]) == {SECOND}


async def test_overlap(cluster: LiveCluster, postgres_url: str) -> None:
    ticks = Ticks()
    ticks.gate.clear()
    await cluster.start(ticks.app(cluster, overlap="skip"))
    await ticks.more(1)

    async def left_out() -> bool:
        known = await stored(cluster, postgres_url)
        return known is not None and known.overlapped >= 2 and known.outcome == "unanswered"

    await soon(left_out, "instants that were left out")
    assert len(ticks.instants) == 1
    ticks.gate.set()
    await ticks.more(2)
    assert ticks.instants[1] - ticks.instants[0] >= 3 * SECOND


async def test_a_schedule_that_the_owners_code_does_not_have(cluster: LiveCluster) -> None:
    app = Ticks().app(cluster, SELDOM)
    await cluster.start(Ticks().app(cluster, SELDOM, name="other"))
    assert app.cron.names == ["tick"]
    with pytest.raises(UnknownSchedule):
        await app.cron.at("tick").run()
    with pytest.raises(KeyError):
        app.cron.at("other")
