"""Shards that catch up at the same time, in shared reads."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from psycopg.errors import UndefinedTable

from entityq.address import Address
from entityq.postgres.backlog import Backlog, Row, Unread
from entityq.runner.catching_up import CatchingUp
from tests.support.live import LiveCluster, soon
from tests.support.places import shard_of
from tests.support.probe import Probe
from tests.support.servers import SHARDS
from tests.support.unpublished import insert_unpublished, request_of


def an_entity_of_each_shard() -> list[str]:
    found: dict[int, str] = {}
    number = 0
    while len(found) < SHARDS:
        number += 1
        found.setdefault(shard_of(str(number)), str(number))
    return list(found.values())


class Reads:
    """What `Backlog.read_pending` is asked for; the first call for a shard waits, with its rows, until `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shards: list[int] = []
        self.parts: list[Unread] = []
        self.reading, self.go_on = asyncio.Event(), asyncio.Event()
        read = Backlog.read_pending

        async def watched(backlog: Backlog, unread: Sequence[Unread], page: int) -> dict[int, list[Row]]:
            rows = await read(backlog, unread, page)
            self.shards.append(len(unread))
            self.parts += unread
            # Without a shard it is a runner that warms up.
            if unread and not self.reading.is_set():
                self.reading.set()
                await self.go_on.wait()
            return rows

        monkeypatch.setattr(Backlog, "read_pending", watched)


async def leave_unpublished(cluster: LiveCluster, app: Any, probe: type[Probe], texts: str) -> list[str]:
    """Requests to an entity of each shard that no stream has."""
    names = an_entity_of_each_shard()
    async with app.open_client() as client:
        for text in texts:
            requests = [request_of(app, client, probe.at(name), "note", text=text) for name in names]
            await insert_unpublished(app, *requests)
    return names


async def test_shards_that_catch_up_together_share_a_read(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    reads = Reads(monkeypatch)
    reads.go_on.set()
    names = await leave_unpublished(cluster, app, probe, "xyz")
    await cluster.start(app)
    await cluster.stage.saw(*(f"note {name} z" for name in names))
    assert {"".join(cluster.stage.lines(f"note {name} ")) for name in names} == {"xyz"}
    assert max(reads.shards) == SHARDS


async def test_with_little_room_few_shards_at_a_time_are_read(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = cluster.app(prefetch=3)
    probe = cluster.actor(app, Probe)
    reads = Reads(monkeypatch)
    reads.go_on.set()
    names = await leave_unpublished(cluster, app, probe, "xyz")
    await cluster.start(app)
    await cluster.stage.saw(*(f"note {name} z" for name in names))
    assert {"".join(cluster.stage.lines(f"note {name} ")) for name in names} == {"xyz"}
    assert max(reads.shards) <= 3


async def test_what_nobody_published_is_found_by_who_takes_the_shard_over(cluster: LiveCluster) -> None:
    """No sweep looks, and the reader of the next owner has long been connected."""
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    first = await cluster.start(app)
    second = await cluster.start(app, "r2", shards=0)

    async def shared() -> bool:
        kept = len(first.life.shards)
        return 0 < kept < SHARDS and second.serves(SHARDS - kept)

    await soon(shared, "each runner serves its part")
    kept = {owned.shard.number for owned in first.life.shards}
    names = [name for name in an_entity_of_each_shard() if shard_of(name) in kept]
    async with app.open_client() as client:
        requests = [request_of(app, client, probe.at(name), "note", text="x") for name in names]
        await insert_unpublished(app, *requests)
    await cluster.stop(first)
    await cluster.stage.saw(*(f"note {name} x" for name in names))


async def test_what_was_read_for_a_shard_that_is_given_up_meanwhile_is_not_delivered(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    first = await cluster.start(app)
    reads = Reads(monkeypatch)
    names = await leave_unpublished(cluster, app, probe, "x")
    for owned in first.life.shards:
        owned.must_catch_up()
    await asyncio.wait_for(reads.reading.wait(), 10)
    second = await cluster.start(app, "r2", shards=0)

    async def served_its_shards() -> bool:
        theirs = [owned.shard.number for owned in second.life.shards]
        told = cluster.stage.journal
        return 0 < len(theirs) == SHARDS - len(first.life.shards) and len(told) == len(theirs)

    await soon(served_its_shards, "the second runner's turns")
    reads.go_on.set()
    await cluster.stage.saw(*(f"note {name} x" for name in names))

    async def answered() -> bool:
        return await cluster.pending() == 0

    await soon(answered, "all replies")
    assert sorted(cluster.stage.journal) == sorted(f"note {name} x" for name in names)


async def test_every_page_of_a_pass_has_the_position_of_the_first(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later one could show a sender's later request, without the earlier one that no page showed yet."""
    monkeypatch.setitem(vars(CatchingUp)["__init__"].__kwdefaults__, "page", 2)
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    names = await leave_unpublished(cluster, app, probe, "abcde")
    reads = Reads(monkeypatch)
    starting = asyncio.create_task(cluster.start(app))
    await asyncio.wait_for(reads.reading.wait(), 10)
    await leave_unpublished(cluster, app, probe, "f")
    reads.go_on.set()
    member = await starting
    positions: dict[int, int] = {}
    for part in reads.parts:
        position = positions.setdefault(part.shard_id, part.position)
        if part.after:
            assert part.position == position
        positions[part.shard_id] = part.position
    assert sum(part.after > 0 for part in reads.parts) >= 2 * SHARDS
    for owned in member.life.shards:
        owned.must_catch_up()
    await cluster.stage.saw(*(f"note {name} f" for name in names))
    assert {"".join(cluster.stage.lines(f"note {name} ")) for name in names} == {"abcdef"}


async def test_an_outage_is_one_line_for_all_shards(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    app = cluster.app()
    cluster.actor(app, Probe)
    member = await cluster.start(app)
    failures: list[int] = []
    read = Backlog.read_pending

    async def watched(backlog: Backlog, unread: Sequence[Unread], page: int) -> dict[int, list[Row]]:
        try:
            return await read(backlog, unread, page)
        except UndefinedTable:
            failures.append(len(unread))
            raise

    monkeypatch.setattr(Backlog, "read_pending", watched)

    def lines(event: str) -> list[str]:
        return [line for line in caplog.messages if line.startswith(f"shard.catching_up_{event}")]

    async def each_failed_often() -> bool:
        return sum(failures) >= 4 * SHARDS

    async def caught_up() -> bool:
        return member.serves(SHARDS) and bool(lines("works_again"))

    await cluster.rows("ALTER TABLE pending RENAME TO pending_away")
    try:
        for owned in member.life.shards:
            owned.must_catch_up()
        await soon(each_failed_often, "every shard failed a few times")
    finally:
        await cluster.rows("ALTER TABLE pending_away RENAME TO pending")
    await soon(caught_up, "all shards caught up")
    assert len(lines("works_again")) == len(lines("failed")) == 1
    assert lines("failed")[0].endswith(f"; shards that catch up try again ({failures[0]} times)")


async def test_large_requests_are_read_in_small_pages(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a shard that has many, and of many that have a few each; none of them waits for ever."""
    most, length = 10_000, 4_000
    monkeypatch.setattr("entityq.postgres.backlog.PAGE_BYTES", most)
    read = Backlog.read_pending
    pages: list[int] = []
    asked: list[list[int]] = []

    async def watched(backlog: Backlog, unread: Sequence[Unread], page: int) -> dict[int, list[Row]]:
        asked.append([part.shard_id for part in unread])
        found = await read(backlog, unread, page)
        pages.append(sum(len(row.envelope) for rows in found.values() for row in rows))
        return found

    monkeypatch.setattr(Backlog, "read_pending", watched)
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    member = await cluster.start(app)
    names = an_entity_of_each_shard()
    first = next(iter(member.life.shards)).shard.number
    large = next(name for name in names if shard_of(name) == first)
    texts = {name: "abcdefghij" if name == large else "xy" for name in names}
    async with app.open_client() as client:
        for name in names:
            requests = [request_of(app, client, probe.at(name), "note", text=t * length) for t in texts[name]]
            await insert_unpublished(app, *requests)
    asked.clear()
    for owned in member.life.shards:
        owned.must_catch_up()
    await cluster.stage.saw(*(f"note {name} {texts[name][-1] * length}" for name in names))
    told = {name: "".join(line[0] for line in cluster.stage.lines(f"note {name} ")) for name in names}
    assert told == texts
    # Whoever found no place on the page comes before the next page of who filled it.
    assert asked[0][0] not in asked[1]
    assert most <= max(pages) <= most + length + 500


async def test_large_requests_of_a_full_mailbox_are_read_in_small_pages(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, length = 10_000, 4_000
    monkeypatch.setattr("entityq.postgres.backlog.PAGE_BYTES", most)
    read = Backlog.read_pending_of_entity
    pages: list[int] = []

    async def watched(backlog: Backlog, shard_id: int, address: Address, page: int) -> list[Row]:
        rows = await read(backlog, shard_id, address, page)
        pages.append(sum(len(row.envelope) for row in rows))
        return rows

    monkeypatch.setattr(Backlog, "read_pending_of_entity", watched)
    app = cluster.app()
    probe = cluster.actor(app, Probe, mailbox_capacity=6).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await probe.note.send(t * length, gate="g" if t == "a" else "") for t in "abcdefghijkl"]
    cluster.stage.open("g")
    assert [await receipt for receipt in receipts] == list(range(1, 13))
    assert "".join(line[0] for line in cluster.stage.lines("note a ")) == "abcdefghijkl"
    assert most <= max(pages) <= most + length + 500
