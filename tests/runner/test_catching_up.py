"""Shards that catch up at the same time, in shared reads."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

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
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    app = cluster.app()
    cluster.actor(app, Probe)
    member = await cluster.start(app)

    def lines(event: str) -> list[str]:
        return [line for line in caplog.messages if line.startswith(f"shard.catching_up_{event}")]

    async def caught_up() -> bool:
        return member.serves(SHARDS) and bool(lines("works_again"))

    await cluster.rows("ALTER TABLE pending RENAME TO pending_away")
    try:
        for _ in range(3):
            for owned in member.life.shards:
                owned.must_catch_up()

            async def tried() -> bool:
                return not any(owned.behind.is_set() for owned in member.life.shards)

            await soon(tried, "every shard has tried once more")
        assert len(lines("failed")) == 1
        assert lines("failed")[0].endswith(f"; shards that catch up try again ({SHARDS} times)")
    finally:
        await cluster.rows("ALTER TABLE pending_away RENAME TO pending")
    await soon(caught_up, "all shards caught up")
    assert len(lines("works_again")) == len(lines("failed")) == 1
