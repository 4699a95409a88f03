"""What arrives while a shard catches up, and what this code cannot read."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from entityq.postgres.backlog import Backlog, Row, Unread
from tests.support.live import LiveCluster
from tests.support.places import neighbour, shard_of
from tests.support.probe import Probe
from tests.support.servers import SHARDS
from tests.support.unpublished import insert_unpublished, request_of


async def test_entries_that_arrive_during_a_pass_do_not_make_another_one(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    member = await cluster.start(app)
    assert await probe.note("before") == 1
    (owned,) = (owned for owned in member.life.shards if owned.shard.number == shard_of("a"))
    reads: list[int] = []
    reading, go_on = asyncio.Event(), asyncio.Event()
    read = Backlog.read_pending

    async def counted(self: Backlog, unread: Sequence[Unread], page: int) -> dict[int, list[Row]]:
        rows = await read(self, unread, page)
        reads.extend(part.shard_id for part in unread)
        reading.set()
        await go_on.wait()
        return rows

    monkeypatch.setattr(Backlog, "read_pending", counted)
    owned.must_catch_up()
    await asyncio.wait_for(reading.wait(), 10)
    receipts = [await probe.note.send(text) for text in "xyz"]
    assert await probe.peek() == ["before"]  # behind them in the stream: they have arrived
    go_on.set()
    assert [await receipt for receipt in receipts] == [2, 3, 4]
    # Another pass would have begun with these at the latest.
    assert [await probe.note(text) for text in "uvw"] == [5, 6, 7]
    assert reads == [owned.shard_id]


async def test_a_request_of_a_newer_format_blocks_its_entity_and_nothing_else(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    blocked, other = probe.at("a"), probe.at(neighbour("a"))
    async with app.open_client() as client:
        first, second = (request_of(app, client, blocked, "note", text=text) for text in ("1", "2"))
        behind = request_of(app, client, other, "note", text="3")
    # The second byte of a stored value is the version of its format.
    newer = replace(first, envelope=first.envelope[:1] + b"\x02" + first.envelope[2:])
    await insert_unpublished(app, newer, second, behind)
    member = await cluster.start(app)
    await cluster.stage.saw(f"note {other.id} 3")
    receipt = await blocked.note.send("4")
    assert await blocked.peek() == []
    assert await other.note("5") == 2
    assert cluster.stage.lines("note a ") == []
    assert "request.unknown_format" in caplog.text
    await cluster.stop(member)
    # As a runner that knows the format would read it.
    await cluster.rows(
        "UPDATE outbox SET envelope = %s WHERE request_id = %s", first.envelope, first.request_id
    )
    await cluster.start(app, "r2", shards=SHARDS)
    assert await receipt == 3
    assert cluster.stage.lines("note a ") == ["1", "2", "4"]
