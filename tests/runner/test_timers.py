"""Requests with an eta, a delay or a time to expire, on a cluster in this process."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from entityq import EntityQ, Interrupted, MalformedMessage, message
from entityq.client import encoding
from entityq.integrations.psycopg import send
from entityq.postgres.backlog import Backlog, Row, Unread
from entityq.postgres.timers import Fired, Statements, fire_timers
from entityq.runner import timer_plan
from entityq.runner import timers as timers_module
from tests.support.live import LiveCluster, Member, soon
from tests.support.probe import Probe
from tests.support.servers import SHARDS
from tests.support.stage import Actor

FAR = timedelta(days=365)


class Alarm(Actor):
    @message
    async def set(self, seconds: float, text: str) -> None:
        alarm = type(self).at(self.id)
        await alarm.ring.options(delay=seconds).send(text)
        await alarm.ring.send("set")

    @message
    async def ring(self, text: str) -> None:
        self._stage.tell(f"ring {self.id} {text}")


async def timers(cluster: LiveCluster) -> int:
    (count,) = await cluster.rows("SELECT count(*) FROM timer")
    return int(count)


async def make_due(cluster: LiveCluster) -> None:
    await cluster.rows("UPDATE timer SET due_at = now()")


@pytest.fixture(autouse=True)
def _looks_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found by accident."""
    monkeypatch.setattr(timer_plan, "LOOK_FOR_TIMERS_EVERY", 600.0)


@pytest.fixture
def app(cluster: LiveCluster) -> EntityQ:
    return cluster.app()


@pytest.fixture
def unserved(cluster: LiveCluster, app: EntityQ) -> type[Probe]:
    return cluster.actor(app, Probe)


@pytest.fixture
async def member(cluster: LiveCluster, app: EntityQ, unserved: type[Probe]) -> Member:
    assert unserved
    return await cluster.start(app)


@pytest.fixture
def probe(unserved: type[Probe], member: Member) -> type[Probe]:
    """Of a cluster with one runner."""
    assert member.serves(SHARDS)
    return unserved


# ----- delay and eta


async def test_a_delayed_request_runs_when_its_time_has_come(
    cluster: LiveCluster, probe: type[Probe]
) -> None:
    receipt = await probe.at("a").note.options(delay=0.3).send("later")
    assert (await timers(cluster), await cluster.pending()) == (1, 0)
    assert await probe.at("a").note("now") == 1
    assert await receipt == 2
    assert cluster.stage.journal == ["note a now", "note a later"]
    # By the clock of the database; nothing of it is left but the reply.
    late = "SELECT extract(epoch FROM replied_at - created_at) >= 0.3 FROM outbox WHERE request_id = %s"
    assert await cluster.rows(late, receipt.request_id) == [True]
    assert (await timers(cluster), await cluster.pending()) == (0, 0)


async def test_an_eta_is_an_instant_and_one_in_the_past_is_now(
    cluster: LiveCluster, probe: type[Probe]
) -> None:
    now = datetime.now(UTC)
    assert await probe.at("a").note.options(eta=now - FAR)("past") == 1
    receipt = await probe.at("a").note.options(eta=now + timedelta(seconds=0.3)).send("soon")
    assert await receipt == 2
    late = "SELECT replied_at >= %s FROM outbox WHERE request_id = %s"
    assert await cluster.rows(late, now + timedelta(seconds=0.3), receipt.request_id) == [True]


async def test_a_delay_does_not_depend_on_the_clock_of_the_sender(
    cluster: LiveCluster, probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    class SkewedClock:
        @staticmethod
        def time() -> float:
            return time.time() + 86_400

    monkeypatch.setattr(encoding, "time", SkewedClock)
    assert await probe.at("a").note.options(delay=0.2)("tomorrow there") == 1


async def test_nobody_is_told_of_what_is_far_away(
    cluster: LiveCluster, member: Member, probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is due soon does not wait for it."""
    heard: list[float] = []
    monkeypatch.setattr(member.life.timers, "plan", Told(member.life.timers.plan, heard))
    await probe.at("a").note.options(delay=FAR).send("far")
    await probe.at("a").note.options(delay=0.05)("near")
    assert cluster.stage.journal == ["note a near"]
    assert len(heard) == 1


class Told:
    """A plan, and what it has heard of."""

    def __init__(self, plan: Any, heard: list[float]) -> None:
        self._own = plan
        self._heard = heard

    def heard(self, due: float) -> None:
        self._heard.append(due)
        self._own.heard(due)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


async def test_at_the_same_time_the_order_is_that_of_sending(
    cluster: LiveCluster, app: EntityQ, probe: type[Probe]
) -> None:
    texts = [str(number) for number in range(60)]
    later = probe.at("a").note.options(eta=datetime.now(UTC) + timedelta(seconds=1))
    sent = await app.send_many([later.request(text) for text in texts])
    await asyncio.gather(*[each.receipt for each in sent])
    assert cluster.stage.lines("note a ") == texts


async def test_in_one_batch_with_others(app: EntityQ, probe: type[Probe]) -> None:
    at = probe.at("a")
    later = at.note.options(delay=0.3)
    requests = [at.note.request("1"), later.request("3"), at.note.request("2"), later.request("4")]
    sent = await app.send_many(requests)
    assert await asyncio.gather(*[each.receipt for each in sent]) == [1, 3, 2, 4]
    # Those that were not published take no number: no gap, so that no pass over the outbox was needed.
    assert await at.note("5") == 5


async def test_sent_by_a_turn_it_is_part_of_it(cluster: LiveCluster) -> None:
    app = cluster.app()
    alarm = cluster.actor(app, Alarm)
    await cluster.start(app)
    await alarm.at("a").set(0.3, "later")
    await cluster.stage.saw("ring a set")
    assert await timers(cluster) == 1
    await cluster.stage.saw("ring a later")
    assert cluster.stage.journal == ["ring a set", "ring a later"]


async def test_in_a_transaction_of_the_callers_own(
    cluster: LiveCluster, probe: type[Probe], postgres_url: str
) -> None:
    """Its time has come before the commit: it is told of then."""
    note = probe.at("a").note.options(delay=0.05)
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        receipt = await send(connection, note.request("later"))
        await connection.execute("SELECT pg_sleep(0.1)")
        assert cluster.stage.journal == []
    assert await receipt == 1


async def test_a_repeat_joins_the_request_that_waits(cluster: LiveCluster, probe: type[Probe]) -> None:
    add = probe.at("a").add
    first = await add.options(delay=0.3).send(5, key="k")
    second = await add.send(5, key="k")
    assert (second.request_id, second.duplicate) == (first.request_id, True)
    assert {await first, await second, await add(5, key="k")} == {5}
    assert cluster.stage.journal == ["add a k"]


async def test_a_volatile_message_cannot_wait(probe: type[Probe]) -> None:
    for options in (probe.at("a").peek.options(delay=1), probe.at("a").peek.options(eta=datetime.now(UTC))):
        with pytest.raises(MalformedMessage, match=r"Probe\.peek is volatile"):
            await options()
    with pytest.raises(MalformedMessage, match="an eta or a delay, not both"):
        probe.at("a").note.options(delay=1, eta=datetime.now(UTC))


async def test_forget_takes_what_was_never_due_along(cluster: LiveCluster, probe: type[Probe]) -> None:
    await probe.at("a").note.options(delay=FAR).send("far")
    await probe.at("b").note.options(delay=FAR).send("another's")
    await probe.at("a").forget()
    assert await cluster.rows("SELECT o.entity_id FROM timer t JOIN outbox o USING (request_id)") == ["b"]
    assert await cluster.rows("SELECT message FROM outbox WHERE entity_id = 'a'") == ["$forget"]


# ----- who fires


async def test_whoever_is_told_of_nothing_finds_it_a_little_later(
    cluster: LiveCluster, app: EntityQ, unserved: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer_plan, "LOOK_FOR_TIMERS_EVERY", 0.1)
    await cluster.start(app)
    probe = unserved
    await probe.at("a").note.options(delay=FAR).send("far")
    await make_due(cluster)  # by hand: nobody says so
    await cluster.stage.saw("note a far")


async def test_a_new_owner_fires_what_was_due_and_what_will_be(cluster: LiveCluster) -> None:
    app = cluster.app(lease_time=1.0)
    probe = cluster.actor(app, Probe)
    first = await cluster.start(app)
    names = [str(number) for number in range(30)]
    receipts = [
        await probe.at(name).add.options(delay=delay).send(1, key="k")
        for name in names
        for delay in (0.3, 0.6)
    ]
    assert len(receipts) == 60
    await cluster.crash(first)
    second = await cluster.start(app, "r2")
    assert second.serves(SHARDS)
    assert await asyncio.gather(*receipts) == [1] * 60
    assert sorted(cluster.stage.lines("add ")) == sorted(f"{name} k" for name in names)


async def test_what_is_fired_while_a_shard_catches_up_is_delivered_once_and_at_once(
    cluster: LiveCluster, member: Member, probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reading, go_on = Backlog.read_pending, asyncio.Event(), asyncio.Event()

    async def held(self: Backlog, unread: Sequence[Unread], page: int) -> Mapping[int, list[Row]]:
        found = await read(self, unread, page)
        reading.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(Backlog, "read_pending", held)
    receipt = await probe.at("a").note.options(delay=FAR).send("far")
    (shard_id,) = await cluster.rows("SELECT shard_id FROM timer")
    life = member.life
    owned = life.shards.get(shard_id)
    assert owned is not None
    owned.must_catch_up()
    await reading.wait()
    await make_due(cluster)
    life.timers.look()
    await cluster.stage.saw("note a far")
    # A pass that begins now, and one that began before, both bring it.
    go_on.set()
    owned.must_catch_up()

    async def serving() -> bool:
        return not owned.intake.catching_up

    await soon(serving, "a shard that is caught up")
    assert await receipt == 1
    assert await probe.at("a").note("next") == 2
    assert cluster.stage.journal == ["note a far", "note a next"]


async def test_what_a_pass_has_brought_before_is_not_delivered_again(
    cluster: LiveCluster, member: Member, probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the statement comes late: what it has fired is pending, and was read and answered meanwhile."""
    fired, go_on = asyncio.Event(), asyncio.Event()

    async def held(session: Statements, shard_ids: Sequence[int], most: int) -> Fired:
        answer = await fire_timers(session, shard_ids, most)
        if answer.rows:
            fired.set()
            await go_on.wait()
        return answer

    monkeypatch.setattr(timers_module, "fire_timers", held)
    receipt = await probe.at("a").note.options(delay=0.1).send("later")
    await fired.wait()
    for owned in member.life.shards:
        owned.must_catch_up()
    assert await receipt == 1
    go_on.set()
    assert await probe.at("a").note.options(delay=0.1)("next") == 2
    assert cluster.stage.journal == ["note a later", "note a next"]


async def test_a_timer_fires_for_a_full_mailbox_too(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe, mailbox_capacity=1)
    await cluster.start(app)
    cluster.stage.close("g")
    held = await probe.at("a").note.send("held", gate="g")
    await cluster.stage.saw("note a held")
    receipts = [await probe.at("a").note.options(delay=0.05).send(text) for text in "xyz"]

    async def fired() -> bool:
        return await timers(cluster) == 0

    await soon(fired, "three fired timers")
    cluster.stage.open("g")
    assert await asyncio.gather(held, *receipts) == [1, 2, 3, 4]


async def test_every_timer_of_many_is_fired(cluster: LiveCluster) -> None:
    """More than a statement takes, and than there is room for."""
    app = cluster.app(prefetch=50)
    probe = cluster.actor(app, Probe)
    await cluster.start(app)
    later = [probe.at(str(n % 40)).note.options(delay=0.3) for n in range(1_200)]
    sent = await app.send_many([each.request(str(n)) for n, each in enumerate(later)])
    await asyncio.gather(*[each.receipt for each in sent])
    assert len(cluster.stage.journal) == 1_200
    for entity in range(40):
        assert cluster.stage.lines(f"note {entity} ") == [str(n) for n in range(entity, 1_200, 40)]


# ----- expires


async def test_what_has_not_started_in_time_is_answered_instead(
    cluster: LiveCluster, probe: type[Probe]
) -> None:
    cluster.stage.close("g")
    held = await probe.at("a").note.send("held", gate="g")
    await cluster.stage.saw("note a held")
    late = await probe.at("a").note.options(expires=0.05).send("late")
    at = datetime.now(UTC) + timedelta(seconds=0.05)
    volatile = asyncio.ensure_future(probe.at("a").peek.options(expires=at).ask())
    in_time = await probe.at("a").note.options(expires=timedelta(hours=1)).send("in time")
    await asyncio.sleep(0.1)  # what is tested is that time passes
    cluster.stage.open("g")
    with pytest.raises(Interrupted, match="note to Probe/a has expired: it was not started in time"):
        await late
    with pytest.raises(Interrupted, match="peek to Probe/a has expired"):
        await volatile
    assert [await held, await in_time] == [1, 2]
    assert cluster.stage.journal == ["note a held", "note a in time"]
    assert await cluster.rows("SELECT version FROM entity") == [2]
    assert await cluster.rows("SELECT count(*) FROM dead_letter") == [0]


async def test_it_can_expire_before_it_is_due(cluster: LiveCluster, probe: type[Probe]) -> None:
    with pytest.raises(Interrupted):
        await probe.at("a").note.options(delay=0.2, expires=0.1)("never")
    assert cluster.stage.journal == []
