import asyncio
from collections.abc import Mapping

import pytest

from entityq import message
from entityq.postgres.backlog import Backlog, SweptRow
from entityq.runner.sweeper import PAGE
from tests.support.live import LiveCluster, live_cluster, soon
from tests.support.places import neighbour
from tests.support.probe import Probe
from tests.support.servers import PrivateServers
from tests.support.stage import Actor
from tests.support.unpublished import insert_unpublished, request_of


async def test_a_client_that_died_between_insert_and_publish_is_made_up_for(cluster: LiveCluster) -> None:
    """In the order of its sending, and before what the same entity is sent later by the stream."""
    app = cluster.app(sweep_interval=0.1)
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    async with app.open_client() as client:
        requests = [request_of(app, client, probe, "note", text=text) for text in "zma"]
        await insert_unpublished(app, *requests)
    await cluster.stage.until(lambda: len(cluster.stage.journal) == 3, "three notes")
    assert cluster.stage.lines("note a ") == ["z", "m", "a"]
    assert await probe.note("last") == 4


async def test_what_is_deferred_or_on_its_way_is_not_missed(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep that cried wolf would read the outbox again and again."""
    sweeps = 0
    look = Backlog.sweep

    async def counted(
        self: Backlog, afters: Mapping[int, int], position: int, page: int
    ) -> dict[int, list[SweptRow]]:
        nonlocal sweeps
        found = await look(self, afters, position, page)
        sweeps += bool(found)
        return found

    monkeypatch.setattr(Backlog, "sweep", counted)
    caplog.set_level("INFO", "entityq")
    app = cluster.app(sweep_interval=0.1, max_resident=1)
    probe = cluster.actor(app, Probe, mailbox_capacity=2)
    member = await cluster.start(app)
    cluster.stage.close("g")
    for text in "wxyz":  # one runs, one waits, two are deferred
        await probe.at("a").note.send(text, gate="g")
    await probe.at("b").note.send("no place")

    async def deferred() -> bool:
        return len(member.life.deferrals) == 2

    await soon(deferred, "two deferred entities")
    sweeps = 0

    async def swept() -> bool:
        return sweeps >= 3

    await soon(swept, "three sweeps that saw them")
    assert "sweep.found" not in caplog.text
    cluster.stage.open("g")
    assert await probe.at("b").note("here") == 2


async def test_what_is_answered_while_a_sweep_reads_is_not_missed(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reading, go_on = asyncio.Event(), asyncio.Event()
    look = Backlog.sweep

    async def held(
        self: Backlog, afters: Mapping[int, int], position: int, page: int
    ) -> dict[int, list[SweptRow]]:
        found = await look(self, afters, position, page)
        if found:
            reading.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(Backlog, "sweep", held)
    caplog.set_level("INFO", "entityq")
    app = cluster.app(sweep_interval=0.1)
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    receipt = await probe.note.send("x", gate="g")
    await asyncio.wait_for(reading.wait(), 10)
    cluster.stage.open("g")
    assert await receipt == 1
    go_on.set()
    assert await probe.note("y") == 2
    assert "sweep.found" not in caplog.text


async def test_without_redis_persisted_requests_are_answered(
    private_servers: PrivateServers, namespace: str
) -> None:
    """TRN-05. They arrive by sweep and notification, and by the stream again when Redis is back."""
    urls = private_servers.postgres_url, private_servers.redis_url
    async with live_cluster(*urls, namespace) as cluster:
        app = cluster.app()
        probe = cluster.actor(app, Probe).at("a")
        await cluster.start(app)
        assert await probe.note("0") == 1
        private_servers.valkey.kill()
        answers = await asyncio.gather(*(probe.note(str(number)) for number in range(1, 6)))
        assert sorted(answers) == [2, 3, 4, 5, 6]
        private_servers.valkey.start()

        async def volatile_works() -> bool:
            return await probe.peek() == [str(number) for number in range(6)]

        assert await soon(volatile_works, "a volatile answer")
        assert await probe.note("6") == 7


class Newer(Actor):
    @message
    async def future(self) -> None:
        pass


async def test_a_page_of_requests_that_wait_for_newer_code_hides_nothing_behind_it(
    cluster: LiveCluster,
) -> None:
    app, newer = cluster.app(sweep_interval=0.1), cluster.app()
    probe = cluster.actor(app, Probe).at(neighbour("a"))
    future = cluster.actor(newer, Newer, type="Probe").at("a")
    await cluster.start(app)
    await asyncio.gather(*(future.future.send() for _ in range(PAGE)))
    assert await probe.note("before") == 1  # in the same stream: all of them have arrived
    async with app.open_client() as client:
        await insert_unpublished(app, request_of(app, client, probe, "note", text="x"))
    await cluster.stage.saw(f"note {probe.id} x")
