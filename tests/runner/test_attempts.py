"""A request that has taken processes down with it is run again, but not for ever."""

import pytest

from entityq import EntityDefect, EntityQ
from entityq.address import Address, Shard
from entityq.entry import Entry
from entityq.envelope import Envelope
from entityq.postgres.outbox import NewRequest, Stored
from entityq.redis.keys import Keys
from entityq.runner.attempts import MAX_ATTEMPTS, exhausted, exhausted_text
from tests.support.live import LiveCluster
from tests.support.places import neighbour, shard_of
from tests.support.probe import Probe
from tests.support.unpublished import insert_unpublished, request_of

ENVELOPE = Envelope(1, Address("Probe", "a"), "note", b"", True, 0)


def test_the_fourth_process_is_the_last_one() -> None:
    assert [exhausted(attempts) for attempts in range(6)] == [False, False, False, False, True, True]


def test_the_caller_is_told_what_happened_and_what_to_do() -> None:
    text = exhausted_text(ENVELOPE, 4)
    assert text.startswith("Probe/a ended the processes of 4 runners")
    assert "'note'" in text
    assert "asyncio.to_thread" in text


async def add_of(app: EntityQ, probe: Probe, key: str) -> NewRequest:
    async with app.open_client() as client:
        return request_of(app, client, probe, "add", amount=1, key=key)


async def has_blocked(cluster: LiveCluster, request: NewRequest, processes: int) -> None:
    await cluster.rows(
        "UPDATE pending SET attempts = %s WHERE request_id = %s", processes, request.request_id
    )


async def publish(cluster: LiveCluster, request: NewRequest, stored: Stored, sender: int) -> None:
    """As the sender's first request to the shard."""
    stream = Keys(cluster.namespace).stream(Shard("default", shard_of(request.address.id)))
    entry = Entry(request.envelope, sender=sender, n=1, seq=stored.seq)
    await cluster.redis("XADD", stream, "*", *(part for pair in entry.fields().items() for part in pair))


async def test_a_request_that_ended_too_many_processes_is_answered_and_not_run(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    request = await add_of(app, probe, "k")
    await insert_unpublished(app, request)
    await has_blocked(cluster, request, MAX_ATTEMPTS)
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="ended the processes of 4 runners") as raised:
        await probe.add(1, key="k")
    assert raised.value.request_id == request.request_id
    assert await probe.add(5, key="next") == 5
    assert cluster.stage.lines("add a ") == ["next"]
    assert f"request.not_run_again shard=default:{shard_of('a')} request={request.request_id}" in caplog.text
    assert await cluster.pending() == 0


async def test_before_that_it_is_run_again(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    request = await add_of(app, probe, "k")
    await insert_unpublished(app, request)
    await has_blocked(cluster, request, MAX_ATTEMPTS - 1)
    await cluster.start(app)
    assert await probe.add(1, key="k") == 1
    assert cluster.stage.lines("add a ") == ["k"]


async def test_so_is_one_that_its_entity_reads_for_itself(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe, mailbox_capacity=1).at("a")
    await cluster.start(app)
    cluster.stage.close("gate")
    running = await probe.add.send(1, key="running", gate="gate")
    await cluster.stage.saw("add a running")
    waiting = [await probe.add.send(1, key=key) for key in ("spent", "fresh")]
    # The mailbox is full, so these are read from the outbox: not before the gate opens.
    await cluster.rows(
        "UPDATE pending SET attempts = %s WHERE request_id = %s", MAX_ATTEMPTS, waiting[0].request_id
    )
    cluster.stage.open("gate")
    assert await running == 1
    with pytest.raises(EntityDefect, match="ended the processes of"):
        await waiting[0]
    assert await waiting[1] == 2
    assert cluster.stage.lines("add a ") == ["running", "fresh"]


async def test_no_stream_entry_of_it_gets_past_its_row(cluster: LiveCluster) -> None:
    app = cluster.app()
    actor = cluster.actor(app, Probe)
    probe, other = actor.at("a"), actor.at(neighbour("a"))
    request = await add_of(app, probe, "k")
    stored = (await insert_unpublished(app, request))[request.request_id]
    await has_blocked(cluster, request, MAX_ATTEMPTS)
    await publish(cluster, request, stored, 1)
    await publish(cluster, request, stored, 1)
    await cluster.start(app)
    with pytest.raises(EntityDefect):
        await probe.add(1, key="k")
    await publish(cluster, request, stored, 1)
    await publish(cluster, request, stored, 2)  # of whom this owner has met no entry yet
    # Behind them in the stream.
    assert await other.add(1, key="other") == 1
    assert await probe.add(1, key="next") == 1
    assert cluster.stage.lines("add a ") == ["next"]
