"""One blocking reader over the streams, and what it does after an error."""

import asyncio
from collections.abc import Sequence

import pytest

from entityq.address import Address, Shard
from entityq.codec import Limits, pack
from entityq.envelope import Envelope
from entityq.redis.consumer import READ_BYTES, StreamEntry, StreamReader
from entityq.redis.keys import CONSUMER_GROUP, Keys
from entityq.runner.sweeper import Sweeper
from tests.support.live import LiveCluster, soon
from tests.support.places import shard_of
from tests.support.probe import Probe
from tests.support.servers import SHARDS


async def reader_connection(cluster: LiveCluster) -> str:
    """The id of the runner's connection, which blocks in XREADGROUP."""

    async def found() -> str:
        clients = str((await cluster.redis("CLIENT", "LIST")).decode())
        blocked = [line for line in clients.splitlines() if "cmd=xreadgroup" in line]
        return blocked[0].split()[0].removeprefix("id=") if len(blocked) == 1 else ""

    return await soon(found, "a blocking read")


def stream(cluster: LiveCluster, entity_id: str) -> bytes:
    return Keys(cluster.namespace).stream(Shard("default", shard_of(entity_id)))


async def test_after_a_lost_connection_the_own_pending_entries_are_read(cluster: LiveCluster) -> None:
    """A reply of Redis was lost on the way: its entries are in nobody's hands but our own."""
    app = cluster.app()
    cluster.actor(app, Probe)
    member = await cluster.start(app)
    connection = await reader_connection(cluster)
    envelope = Envelope(app.new_id(), Address("Probe", "a"), "peek", pack({}, Limits(), "x"), False, 1)
    key = stream(cluster, "a")
    # In one transaction, so that the runner's own read does not get it.
    consumer = str(next(iter(member.life.shards)).tenure.incarnation)
    _, taken = await cluster.redis_transaction(
        ("XADD", key, "*", "e", envelope.encode()),
        ("XREADGROUP", "GROUP", CONSUMER_GROUP, consumer, "STREAMS", key, ">"),
    )
    assert taken
    await cluster.redis("CLIENT", "KILL", "ID", connection)
    await cluster.stage.saw("peek a")

    async def acknowledged() -> bool:
        return int(await cluster.redis("XLEN", key)) == 0

    await soon(acknowledged, "the entry was deleted")


async def test_after_a_lost_connection_what_others_left_is_claimed(cluster: LiveCluster) -> None:
    """The takeover could not: Redis was away."""
    app = cluster.app()
    cluster.actor(app, Probe)
    await cluster.start(app)
    connection = await reader_connection(cluster)
    envelope = Envelope(app.new_id(), Address("Probe", "a"), "peek", pack({}, Limits(), "x"), False, 1)
    key = stream(cluster, "a")
    _, taken = await cluster.redis_transaction(
        ("XADD", key, "*", "e", envelope.encode()),
        ("XREADGROUP", "GROUP", CONSUMER_GROUP, "dead", "STREAMS", key, ">"),
    )
    assert taken
    await cluster.redis("CLIENT", "KILL", "ID", connection)
    await cluster.stage.saw("peek a")


@pytest.mark.parametrize("loss", ["FLUSHALL", "XGROUP"])
async def test_missing_groups_are_made_again_and_nothing_is_lost(cluster: LiveCluster, loss: str) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await reader_connection(cluster)
    cluster.stage.close("g")
    receipts = [await probe.note.send("0", gate="g")]
    await cluster.stage.saw("note a 0")
    receipts.append(await probe.note.send("1"))
    if loss == "FLUSHALL":
        await cluster.flush_redis()
    else:
        await cluster.redis("XGROUP", "DESTROY", stream(cluster, "a"), CONSUMER_GROUP)
    receipts += [await probe.note.send(str(number)) for number in range(2, 6)]
    cluster.stage.open("g")
    assert [await receipt for receipt in receipts] == [1, 2, 3, 4, 5, 6]
    assert cluster.stage.lines("note a ") == ["0", "1", "2", "3", "4", "5"]
    # Volatile messages are in the streams alone: their groups are there again.
    assert len(await probe.peek()) == 6


async def test_the_repeat_of_a_volatile_request_that_is_under_way_goes(cluster: LiveCluster) -> None:
    """Its sender was not told that Redis had taken the first one."""
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    held = await probe.note.send("x", gate="g")
    await cluster.stage.saw("note a x")
    envelope = Envelope(app.new_id(), Address("Probe", "a"), "peek", pack({}, Limits(), "x"), False, 1)
    key = stream(cluster, "a")
    for _ in range(3):
        await cluster.redis("XADD", key, "*", "e", envelope.encode())

    async def two_left() -> bool:
        return int(await cluster.redis("XLEN", key)) == 2

    await soon(two_left, "the running one and the first of those that wait")
    cluster.stage.open("g")
    assert await held == 1


async def test_a_flush_is_noticed_when_no_sweep_looks(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is under way does not see what it should, and the next one is far."""
    swept = asyncio.Event()

    async def see_nothing(_sweeper: Sweeper) -> None:
        swept.set()

    monkeypatch.setattr(Sweeper, "sweep", see_nothing)
    app = cluster.app(prefetch=1)
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await reader_connection(cluster)
    cluster.stage.close("g")
    held = await probe.note.send("0", gate="g")
    await cluster.stage.saw("note a 0")
    receipts = [await probe.note.send(str(number)) for number in range(1, 4)]

    async def published() -> bool:
        return int(await cluster.redis("XLEN", stream(cluster, "a"))) == 4

    await soon(published, "four entries, of which one was read")
    await cluster.flush_redis()
    cluster.stage.open("g")
    assert [await receipt for receipt in (held, *receipts)] == [1, 2, 3, 4]
    assert swept.is_set()


async def test_an_entry_that_nobody_can_read_goes(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    key = stream(cluster, "a")
    await cluster.redis("XADD", key, "*", "e", b"\xc1")
    await cluster.redis("XADD", key, "*", "nothing", "known")
    assert await probe.note("x") == 1

    async def gone() -> bool:
        return int(await cluster.redis("XLEN", key)) == 0

    await soon(gone, "the entries were deleted")
    assert caplog.text.count("stream.entry_unreadable") == 2


async def test_large_entries_are_read_a_few_at_a_time(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, reads = 128 * 1024, list[int]()
    read = StreamReader.read

    async def watched(
        reader: StreamReader, streams: Sequence[bytes], *, count: int, block: float
    ) -> list[StreamEntry]:
        entries = await read(reader, streams, count=count, block=block)
        reads.extend([len(entries)] * any(b"e" in entry.fields for entry in entries))
        return entries

    monkeypatch.setattr(StreamReader, "read", watched)
    app = cluster.app()
    cluster.actor(app, Probe)
    await cluster.start(app)
    key = stream(cluster, "a")
    await cluster.redis_transaction(*([("XADD", key, "*", "e", b"\xc1" * size)] * 100))

    async def gone() -> bool:
        return int(await cluster.redis("XLEN", key)) == 0

    await soon(gone, "the entries were deleted")
    # How large they are the first read tells; each of the others would fit if every stream had as many.
    streams = SHARDS + 1
    assert len(reads) > 2
    assert max(reads[1:]) * size * streams <= READ_BYTES
