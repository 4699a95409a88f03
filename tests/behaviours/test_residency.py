"""The cap on resident entities, and reading in batches: RES of the checklist (see README.md here)."""

import asyncio
from collections.abc import Sequence

import pytest

from entityq import MailboxFull, message
from entityq.address import Address
from entityq.postgres.backlog import Backlog, Row, Unread
from entityq.runner.catching_up import CatchingUp
from tests.support.live import LiveCluster, Member, soon
from tests.support.places import neighbours, shard_of
from tests.support.probe import Probe
from tests.support.stage import Actor


class Counted(Actor):
    """Tells when it comes and goes."""

    async def on_activate(self) -> None:
        self._stage.tell(f"+{self.id}")

    async def on_deactivate(self) -> None:
        self._stage.tell(f"-{self.id}")

    @message
    async def visit(self, gate: str = "") -> str:
        await self._stage.enter(f"visit {self.id}", gate)
        return self.id


def most_at_once(journal: list[str]) -> int:
    """How many were there at the same time, at most."""
    now = most = 0
    for line in journal:
        now += {"+": 1, "-": -1}.get(line[0], 0)
        most = max(most, now)
    return most


async def test_res_01_no_more_than_the_cap_are_live_and_all_complete(cluster: LiveCluster) -> None:
    app = cluster.app(max_resident=2)
    counted = cluster.actor(app, Counted)
    await cluster.start(app)
    names = [f"e{number}" for number in range(6)]
    assert await asyncio.gather(*(counted.at(name).visit() for name in names)) == names
    assert sorted(cluster.stage.lines("visit ")) == names
    assert most_at_once(cluster.stage.journal) == 2


async def occupied(cluster: LiveCluster, *, cap: int = 1) -> tuple[Member, type[Probe]]:
    """A runner whose only place is taken by "a", whose turn waits at the gate "g"."""
    app = cluster.app(max_resident=cap)
    probe = cluster.actor(app, Probe, concurrency=1)
    member = await cluster.start(app)
    cluster.stage.close("g")
    await probe.at("a").note.send("first", gate="g")
    await cluster.stage.saw("note a first")
    return member, probe


async def test_res_02_without_a_place_volatile_is_refused_and_persisted_waits(cluster: LiveCluster) -> None:
    member, probe = await occupied(cluster)
    with pytest.raises(MailboxFull):
        await probe.at("b").peek.options(timeout=0.2).ask()
    receipt = await probe.at("b").note.send("waits")

    async def deferred() -> bool:
        return len(member.life.deferrals) == 1

    await soon(deferred, "the request to b was deferred")
    assert (await cluster.pending(), await cluster.replies(), len(member.life.residents)) == (2, 0, 1)
    cluster.stage.open("g")
    assert await receipt == 1
    assert [found.address.id for found in member.life.residents] == ["b"]


async def test_res_03_those_that_find_no_place_do_not_stand_in_the_way(cluster: LiveCluster) -> None:
    member, probe = await occupied(cluster)
    others = neighbours("a")
    for _ in range(3):
        await probe.at(next(others)).note.send("waits")
    behind = await probe.at("a").note.send("second")

    async def queued() -> bool:
        (activation,) = member.life.residents
        return activation.queued == 2

    await soon(queued, "the request to a was delivered")
    assert await cluster.pending() == 5
    cluster.stage.open("g")
    assert await behind == 2


async def test_res_04_a_backlog_of_many_pages_is_read_at_once(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And RES-06: the pages stay as large as they are, however few places are free."""
    pages: list[int] = []
    read = Backlog.read_pending

    async def counted(self: Backlog, unread: Sequence[Unread], page: int) -> dict[int, list[Row]]:
        rows = await read(self, unread, page)
        if rows:
            pages.append(page)
        return rows

    monkeypatch.setattr(Backlog, "read_pending", counted)
    small_pages(monkeypatch)
    app = cluster.app(max_resident=4)
    probe = cluster.actor(app, Probe).at("a")
    receipts = [await probe.note.send(str(number)) for number in range(5)]
    await cluster.flush_redis()
    await cluster.start(app)
    assert [await receipt for receipt in receipts] == [1, 2, 3, 4, 5]
    assert pages == [2, 2, 2]


async def test_res_05_requests_that_run_already_do_not_hide_those_behind_them(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pages(monkeypatch)
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    member = await cluster.start(app)
    others = neighbours("a")
    names = ["a", next(others), next(others)]
    cluster.stage.close("g")
    for name in names[:2]:
        await probe.at(name).note.send("runs", gate="g")
        await cluster.stage.saw(f"note {name} runs")
    await cluster.flush_redis()
    third = await probe.at(names[2]).note.send("behind")
    for owned in member.life.shards:
        if owned.shard.number == shard_of("a"):
            owned.must_catch_up()
    assert await third == 1
    assert await cluster.pending() == 2


async def test_res_08_a_backlog_without_a_place_is_not_read_again_and_again(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns that end wake the feeder; it does not ask Postgres for what it has no place for."""
    reads: list[Address] = []
    read = Backlog.read_pending_of_entity

    async def counted(self: Backlog, shard_id: int, address: Address, page: int) -> list[Row]:
        reads.append(address)
        return await read(self, shard_id, address, page)

    monkeypatch.setattr(Backlog, "read_pending_of_entity", counted)
    app = cluster.app(max_resident=1)
    probe = cluster.actor(app, Probe, concurrency=2)
    member = await cluster.start(app)
    cluster.stage.close("g")
    await probe.at("a").note.send("first", gate="g")
    await cluster.stage.saw("note a first")
    waiting = [await probe.at(name).note.send("waits") for name in ("b", "c", "d")]

    async def deferred() -> bool:
        return len(member.life.deferrals) == 3

    await soon(deferred, "three entities are deferred")
    reads.clear()
    for _ in range(20):
        # A turn of the resident entity ends, and wakes the feeder.
        assert await probe.at("a").look() == 0
    assert not reads
    cluster.stage.open("g")
    assert [await receipt for receipt in waiting] == [1, 1, 1]


async def test_res_09_without_a_cap_in_reach_all_are_live(cluster: LiveCluster) -> None:
    app = cluster.app()
    counted = cluster.actor(app, Counted)
    member = await cluster.start(app)
    names = [f"e{number}" for number in range(15)]
    cluster.stage.close("g")
    asking = [asyncio.create_task(counted.at(name).visit(gate="g")) for name in names]
    await cluster.stage.saw(*(f"visit {name}" for name in names))
    assert len(member.life.residents) == 15
    cluster.stage.open("g")
    assert await asyncio.gather(*asking) == names


def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catching up reads two rows at a time."""
    monkeypatch.setitem(vars(CatchingUp)["__init__"].__kwdefaults__, "page", 2)
