"""Taking shards over and giving them up, with turns under way."""

import asyncio
from typing import ClassVar

import pytest

from entityq import Accepted, RunnerUnavailable, message
from entityq.address import Shard
from entityq.redis.keys import Keys
from tests.support.live import LiveCluster, Member, soon
from tests.support.places import shard_of
from tests.support.probe import Probe
from tests.support.servers import SHARDS
from tests.support.stage import Actor


class Threaded(Actor):
    total: int = 0

    @message
    def add(self, amount: int, gate: str = "") -> int:
        self.total += amount
        self._stage.enter_from_thread(f"add {self.id}", gate)
        return self.total


def an_entity_of_each_shard() -> list[str]:
    found: dict[int, str] = {}
    number = 0
    while len(found) < SHARDS:
        number += 1
        found.setdefault(shard_of(str(number)), str(number))
    return list(found.values())


def owner(entity_id: str, *members: Member) -> Member | None:
    holding = [
        member
        for member in members
        if any(owned.shard.number == shard_of(entity_id) for owned in member.life.shards)
    ]
    return holding[0] if holding else None


async def settled(one: Member, other: Member) -> None:
    """The two share the shards, and all of them are served."""

    async def shared() -> bool:
        mine, theirs = len(one.life.shards), len(other.life.shards)
        return mine + theirs == SHARDS and theirs > 0 and one.serves(mine) and other.serves(theirs)

    await soon(shared, "shards shared by two runners")


async def test_a_thread_that_outlives_its_lease_changes_nothing(cluster: LiveCluster) -> None:
    """Its shard was given away, and taken again by the same runner, before it ended."""
    app = cluster.app(termination_time=0.2)
    threaded = cluster.actor(app, Threaded)
    first = await cluster.start(app)
    cluster.stage.close("g")
    names = an_entity_of_each_shard()
    receipts = {name: await threaded.at(name).add.send(1, gate="g") for name in names}
    await cluster.stage.saw(*(f"add {name}" for name in names))
    second = await cluster.start(app, "r2", shards=0)
    await settled(first, second)
    moved = [name for name in names if owner(name, first, second) is second]
    await cluster.stage.until(
        lambda: all(cluster.stage.journal.count(f"add {name}") == 2 for name in moved), "turns of the second"
    )
    await cluster.stop(second)
    await cluster.stage.until(
        lambda: all(cluster.stage.journal.count(f"add {name}") == 3 for name in moved), "turns of the first"
    )
    cluster.stage.open("g")
    assert [await receipt for receipt in receipts.values()] == [1] * SHARDS
    assert [await threaded.at(name).add(1) for name in names] == [2] * SHARDS
    assert set(await cluster.rows("SELECT version FROM entity")) == {2}


class Forwarder(Actor):
    target: ClassVar[Probe]

    @message
    async def forward(self, text: str, gate: str) -> None:
        await self.target.note.send(text)
        await self._stage.enter(f"forward {self.id}", gate)


async def test_what_a_turn_sends_while_its_shard_is_given_up_does_not_wait_for_a_sweep(
    cluster: LiveCluster,
) -> None:
    app = cluster.app(termination_time=10.0)
    forwarder = cluster.actor(app, Forwarder)
    names = an_entity_of_each_shard()
    forwarder.target = cluster.actor(app, Probe).at(names[1])
    first = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await forwarder.at(names[0]).forward.send("x", "g")
    await cluster.stage.saw(f"forward {names[0]}")
    second = await cluster.start(app, "r2", shards=0)
    stopping = asyncio.create_task(cluster.stop(first))

    async def all_but_one() -> bool:
        return second.serves(SHARDS - 1)

    await soon(all_but_one, "all shards but the forwarder's moved")
    cluster.stage.open("g")
    await receipt
    await cluster.stage.saw(f"note {names[1]} x")
    await stopping


async def test_turns_that_commit_while_their_shard_is_given_up_publish_and_acknowledge(
    cluster: LiveCluster,
) -> None:
    """Nobody else is there to claim what they leave in the streams."""
    app = cluster.app(termination_time=10.0)
    forwarder = cluster.actor(app, Forwarder)
    names = an_entity_of_each_shard()
    forwarder.target = cluster.actor(app, Probe).at(names[1])
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await forwarder.at(names[0]).forward.send("x", "g")
    await cluster.stage.saw(f"forward {names[0]}")
    stopping = asyncio.create_task(cluster.stop(member))

    async def leaving() -> bool:
        return not member.life.shards

    await soon(leaving, "the shards were taken out of the runner's table")
    cluster.stage.open("g")
    await receipt
    await stopping
    keys = Keys(cluster.namespace)
    from_, to = (keys.stream(Shard("default", shard_of(name))) for name in names[:2])
    assert [await cluster.redis("XLEN", stream) for stream in (from_, to)] == [0, 1]


async def test_a_drain_hands_over_what_has_not_started_in_order(cluster: LiveCluster) -> None:
    app = cluster.app(termination_time=10.0)
    probe = cluster.actor(app, Probe).at("a")
    first = await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await probe.note.send(str(number), gate="g" if number == 0 else "") for number in range(6)]
    await cluster.stage.saw("note a 0")
    second = await cluster.start(app, "r2", shards=0)
    stopping = asyncio.create_task(cluster.stop(first))

    async def leaving() -> bool:
        return owner("a", second) is second or not first.life.shards

    await soon(leaving, "the shard was taken out of the first one's table")
    assert cluster.stage.lines("note a ") == ["0"]
    cluster.stage.open("g")
    assert [await receipt for receipt in receipts] == [1, 2, 3, 4, 5, 6]
    assert cluster.stage.lines("note a ") == ["0", "1", "2", "3", "4", "5"]
    await stopping
    assert await cluster.pending() == 0


async def test_is_local_follows_the_shards(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    assert not await app.is_local(probe, "a")
    member = await cluster.start(app)
    assert await app.is_local(probe, "a")
    await cluster.stop(member)
    assert not await app.is_local(probe, "a")


async def test_without_time_to_end_nothing_of_the_lease_stays(cluster: LiveCluster) -> None:
    """The runner takes the shards again later: an old activation in its table would never commit."""
    app = cluster.app(termination_time=0)
    probe = cluster.actor(app, Probe)
    first = await cluster.start(app)
    cluster.stage.close("g")
    names = an_entity_of_each_shard()
    receipts = [await probe.at(name).note.send("x", gate="g") for name in names]
    await cluster.stage.saw(*(f"note {name} x" for name in names))
    second = await cluster.start(app, "r2", shards=0)
    await settled(first, second)
    assert all(owner(found.address.id, first) is first for found in first.life.residents)
    cluster.stage.open("g")
    await cluster.stop(second)
    assert [await receipt for receipt in receipts] == [1] * SHARDS


async def test_a_group_comes_and_goes_with_its_runners(cluster: LiveCluster) -> None:
    """Callers of a group that nobody serves wait until somebody does, or their time ends."""
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    threaded = cluster.actor(app, Threaded, shard_group="mail")
    default = await cluster.start(app, "d", groups=("default",))
    assert [await probe.at("a").note("x"), len(default.life.shards)] == [1, SHARDS]
    with pytest.raises(RunnerUnavailable) as unavailable:
        await threaded.at("t").add.options(timeout=0.3)(1)
    assert unavailable.value.accepted is Accepted.YES
    waiting = asyncio.create_task(threaded.at("t").add(10))
    mail = await cluster.start(app, "m", groups=("mail",))
    assert await waiting == 11
    assert await probe.at("a").note("y") == 2
    await cluster.stop(mail)
    assert len(default.life.shards) == SHARDS
    with pytest.raises(RunnerUnavailable):
        await threaded.at("t").add.options(timeout=0.3)(100)
    mail = await cluster.start(app, "m2", groups=("mail",))
    assert await threaded.at("t").add(1000) == 1111


class Slow(Actor):
    """Takes its time to be made."""

    async def on_activate(self) -> None:
        await self._stage.enter(f"activate {self.id}", "g")

    @message
    async def touch(self) -> str:
        return self.id


async def test_lck_04_an_entity_that_is_being_made_holds_up_no_loss_of_the_leases(
    cluster: LiveCluster,
) -> None:
    app = cluster.app(termination_time=60.0)
    slow = cluster.actor(app, Slow)
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await slow.at("a").touch.send()
    await cluster.stage.saw("activate a")
    lost = member.life
    await cluster.rows("SELECT pg_terminate_backend(pid) FROM runner")
    await cluster.stage.until(lambda: cluster.stage.journal.count("activate a") == 2, "another activation")
    assert member.runner.life not in {None, lost}
    cluster.stage.open("g")
    assert await receipt == "a"
